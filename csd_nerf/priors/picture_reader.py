"""What transformers of flow matching have in common whose text encoder looks at the picture, too."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError
from csd_nerf.priors.base import Text, TextParts, joined
from csd_nerf.priors.flow_transformer import FlowTransformer


class PictureReader(FlowTransformer):
    """A transformer told the prompt by a model of language and vision, Qwen2.5-VL, that is shown the picture.

    So what it is told differs from view to view. A condition has the source picture's latents, and behind
    them its pixels: the channels of a token are its square of the picture.

    Args:
        parts: of `FlowTransformer`; `load_text` gives a processor and Qwen2.5-VL.
    """

    text_sees_picture = True

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        return self._shown(images, self.encode(images))

    @torch.no_grad()
    def encode_source(
        self, images: Float[Tensor, "n 3 height width"], shown: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        latents = self.encode(images)
        if shown is not None and shown is not images:
            return latents, self.condition(shown)
        return latents, self._shown(images, latents)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"] | None = None) -> Text:
        """See `Prior.embed`; cached by prompt and picture, in the machine's own memory."""
        if condition is None:
            raise InputError(
                "the prior's text encoder looks at the picture, and is given none",
                expected="a source picture for each prompt",
                got=f"{len(prompts)} prompts alone",
                hint="edit pictures or a captured scene, or use another prior",
            )
        pictures = self._pixels(condition)
        keys = [
            f"{prompt}\0{hashlib.blake2b(picture.numpy().tobytes()).hexdigest()}"
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        new = {key: row for row, key in enumerate(keys) if key not in self._embeddings}
        if new:
            ((processor, model),) = self._load_text()
            model = model.eval().to(self.device)
            for key, row in new.items():
                picture = Image.fromarray(pictures[row].numpy())
                with self._own_precision():
                    words = self._read(processor, model, prompts[row], picture).to(self.dtype)
                told = TextParts((words, torch.ones_like(words[..., 0], dtype=torch.bool)))
                self._embeddings[key] = told.to(torch.device("cpu"))  # of a scene there are many
        return joined([self._embeddings[key] for key in keys]).to(self.device)

    @abstractmethod
    def _read(
        self, processor: Any, model: Any, prompt: str, picture: Image.Image
    ) -> Float[Tensor, "1 words width"]:
        """The last hidden states of a prompt about a picture."""

    def _encode_text(self, prompts: list[str]) -> Text:
        raise NotImplementedError("`embed` looks at the picture, too")

    def _picture_tokens(self, condition: Float[Tensor, "n k h w"]) -> Float[Tensor, "n c h w"]:
        return condition[:, : self.latent_channels]

    def _shown(self, images: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([latents, functional.pixel_unshuffle(images.float(), self.vae_factor)], dim=1)

    def _pixels(self, condition: Float[Tensor, "n k h w"]) -> Tensor:
        """The pictures of conditions as bytes (n, height, width, 3), on the CPU."""
        pictures = functional.pixel_shuffle(condition[:, self.latent_channels :], self.vae_factor)
        return (255 * pictures).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu()


def words_and_mask(text: Text) -> tuple[Float[Tensor, "m l d"], Tensor]:
    """What `PictureReader.embed` gives: words, and which of them count (m, l)."""
    assert isinstance(text, TextParts)
    words, counts = text.parts
    return words, counts
