"""FLUX.2 klein (Black Forest Labs, 2026): edits the picture it is shown, by instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.priors.base import Text
from csd_nerf.priors.flow_transformer import FlowTransformer
from csd_nerf.priors.folder import PATCH


class Flux2Klein(FlowTransformer):
    """FLUX.2's transformer, told the prompt by three layers of a language model, Qwen3.

    Args:
        parts: of `FlowTransformer`; the VAE is an `AutoencoderKLFlux2`, whose patches brought to mean 0 and
            deviation 1 are the latents, and `load_text` gives Qwen3.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        known = self.vae.bn
        variance = known.running_var.float() + self.vae.config["batch_norm_eps"]
        self._mean, self._deviation = (
            number.view(1, -1, 1, 1) for number in (known.running_mean.float(), variance.sqrt())
        )

    def _scaled(self, encoded: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n c h w"]:
        return (functional.pixel_unshuffle(encoded, PATCH) - self._mean) / self._deviation

    def _unscaled(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        return functional.pixel_shuffle(latents * self._deviation + self._mean, PATCH)

    def _encode_text(self, prompts: list[str]) -> Float[Tensor, "n l d"]:
        ((tokenizer, language_model),) = self._load_text()
        language_model = language_model.eval().to(self.device)
        asked = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for prompt in prompts
        ]
        tokens = self._tokens(tokenizer, asked, _WORDS)
        with self._own_precision():
            answer = language_model(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                output_hidden_states=True,
                use_cache=False,
            )
        words = torch.cat([answer.hidden_states[layer] for layer in _LAYERS], dim=2)
        return words.to(self.dtype)

    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 4"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        return transformer(hidden_states=tokens, timestep=time, **self._told(text, places)).sample

    def _told(self, text: Text, places: Float[Tensor, "tokens 4"]) -> dict[str, Any]:
        """What the transformer is given beside tokens and time."""
        words = cast(Tensor, text)  # what `_encode_text` gives
        word_places = places.new_zeros(words.shape[1], places.shape[1])
        word_places[:, 3] = torch.arange(len(word_places))
        return {
            "encoder_hidden_states": words,
            "img_ids": places,
            "txt_ids": word_places,
            "guidance": None,
        }

    def _places(self, height: int, width: int, order: int) -> Tensor:
        picture = torch.tensor([_PICTURE_DISTANCE * order])
        return torch.cartesian_prod(picture, torch.arange(height), torch.arange(width), torch.tensor([0]))


_LAYERS = (9, 18, 27)
"""Of the language model, whose hidden states are the words."""
_WORDS = 512
"""Tokens of the language model that the transformer was trained with; longer prompts are cut off."""
_PICTURE_DISTANCE = 10
"""Along the first axis of places, from the noisy picture to the source."""
