"""FLUX.2 klein made for keeping what it knows of the picture it is shown (`FLUX.2-klein-9b-kv`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import Text
from csd_nerf.priors.flux2_klein import Flux2Klein


class Flux2KleinKV(Flux2Klein):
    """A klein in which the source picture's tokens see themselves alone, at no noise.

    So their keys and values are the same whatever is asked about the picture, and are computed once. Those of
    the pictures of the last call are kept: of every layer, so of a few views at a time.

    Args:
        parts: of `Flux2Klein`.
    """

    _picture_first = True

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        from diffusers.models.transformers.transformer_flux2 import (
            Flux2KVAttnProcessor,
            Flux2KVParallelSelfAttnProcessor,
        )

        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(Flux2KVAttnProcessor())
        for block in self.transformer.single_transformer_blocks:
            block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
        self._kept: dict[bytes, list[tuple[Tensor, Tensor]]] = {}  # picture -> keys and values of every layer
        self._asked: set[bytes] = set()

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        self._asked.clear()
        answer = super().predict_noise(noisy, t, text, condition)
        self._kept = {picture: known for picture, known in self._kept.items() if picture in self._asked}
        return answer

    def _answer(
        self,
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 4"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        count = _tokens_of_picture(places)
        if not count:
            return self._evaluate(self.transformer, tokens, places, time, text)
        pictures = [_fingerprint(row[:count]) for row in tokens]
        self._asked.update(pictures)
        new = {picture: row for row, picture in enumerate(pictures) if picture not in self._kept}
        answers: dict[int, Tensor] = {}
        if new:
            rows = torch.tensor(list(new.values()), device=self.device)
            said, known = self._extract(self.transformer, tokens[rows], places, time[rows], text[rows])
            answers.update(zip(new.values(), said, strict=True))
            for place, picture in enumerate(new):
                self._kept[picture] = [
                    (keys[place : place + 1], values[place : place + 1]) for keys, values in known
                ]
        others = [row for row in range(len(tokens)) if row not in answers]
        if others:
            rows = torch.tensor(others, device=self.device)
            layers = zip(*(self._kept[pictures[row]] for row in others), strict=True)
            known = [
                (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
                for layer in layers
            ]
            said = self._with_known(
                known, count, tokens[rows, count:], places[count:], time[rows], text[rows]
            )
            answers.update(zip(others, said, strict=True))
        return torch.stack([answers[row] for row in range(len(tokens))])

    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 4"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        if not _tokens_of_picture(places):
            return super()._evaluate(transformer, tokens, places, time, text)
        return self._extract(transformer, tokens, places, time, text)[0]

    def _extract(
        self, transformer: Callable[..., Any], tokens: Tensor, places: Tensor, time: Tensor, text: Text
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The noisy picture's velocities, and keys and values of the source's in every layer."""
        answer = transformer(
            hidden_states=tokens,
            timestep=time,
            kv_cache_mode="extract",
            num_ref_tokens=_tokens_of_picture(places),
            **self._told(text, places),
        )
        cache = answer.kv_cache
        return answer.sample, [
            layer.get() for layer in (*cache.double_block_caches, *cache.single_block_caches)
        ]

    def _with_known(
        self,
        known: list[tuple[Tensor, Tensor]],
        count: int,
        tokens: Tensor,
        places: Tensor,
        time: Tensor,
        text: Text,
    ) -> Tensor:
        """The same velocities, of the noisy picture's tokens alone."""
        from diffusers.models.transformers.transformer_flux2 import Flux2KVCache

        cache = Flux2KVCache(
            len(self.transformer.transformer_blocks), len(self.transformer.single_transformer_blocks)
        )
        cache.num_ref_tokens = count
        for layer, pair in zip((*cache.double_block_caches, *cache.single_block_caches), known, strict=True):
            layer.store(*pair)
        return self.transformer(
            hidden_states=tokens,
            timestep=time,
            kv_cache=cache,
            kv_cache_mode="cached",
            **self._told(text, places),
        ).sample


def _tokens_of_picture(places: Float[Tensor, "tokens 4"]) -> int:
    """How many of the tokens are the source picture's."""
    return int((places[:, 0] > 0).sum())


def _fingerprint(tokens: Float[Tensor, "tokens c"]) -> bytes:
    return hashlib.blake2b(tokens.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()
