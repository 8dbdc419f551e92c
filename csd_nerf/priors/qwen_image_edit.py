"""Qwen-Image-Edit (Qwen, 2508.02324; of 2509 and 2511): edits the picture it is shown, by instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from csd_nerf.priors.base import Text
from csd_nerf.priors.folder import PATCH
from csd_nerf.priors.picture_reader import PictureReader, words_and_mask


class QwenImageEdit(PictureReader):
    """Qwen-Image's transformer of two streams, words and pictures.

    After guidance by the prompt a velocity is as long, in every token, as that of the prompt's branch.

    Args:
        parts: of `PictureReader`; the VAE is an `AutoencoderKLQwenImage`, made for clips, to which a picture
            is one of a single frame.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._mean, self._deviation = (
            torch.tensor(self.vae.config[name], device=self.device).view(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )

    def settled(
        self,
        guided: Float[Tensor, "n c h w"],
        prompted: Float[Tensor, "n c h w"],
        noisy: Float[Tensor, "n c h w"],
        t: int,
    ) -> Float[Tensor, "n c h w"]:
        alpha = self.schedule.alphas[t].item()
        velocity, wanted = ((noise - noisy) / alpha for noise in (guided, prompted))
        scale = wanted.norm(dim=1, keepdim=True) / velocity.norm(dim=1, keepdim=True)
        return noisy + alpha * scale * velocity

    def _scaled(self, encoded: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n c h w"]:
        return functional.pixel_unshuffle((encoded - self._mean) / self._deviation, PATCH)

    def _unscaled(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        return functional.pixel_shuffle(latents, PATCH) * self._deviation + self._mean

    def _encode_batch(self, images: Tensor) -> Tensor:
        with self._own_precision():
            posterior = self.vae.encode(self._vae_input(images.float() * 2 - 1)[:, :, None]).latent_dist
        return posterior.mode()[:, :, 0].float().contiguous()

    def _decode_batch(self, unscaled: Tensor) -> Tensor:
        with self._own_precision():
            clip = self.vae.decode(self._vae_input(unscaled)[:, :, None]).sample
        return clip[:, :, 0].float().contiguous() / 2 + 0.5

    def _read(
        self, processor: Any, model: Any, prompt: str, picture: Image.Image
    ) -> Float[Tensor, "1 words width"]:
        from diffusers.image_processor import VaeImageProcessor
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as published

        width, height = published.calculate_dimensions(
            published.CONDITION_IMAGE_SIZE, picture.width / picture.height
        )
        asked = processor(
            text=[_ASKED.format(prompt)],
            images=[VaeImageProcessor().resize(picture, height, width)],
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        answer = model(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            pixel_values=asked["pixel_values"],
            image_grid_thw=asked["image_grid_thw"],
            output_hidden_states=True,
        )
        return answer.hidden_states[-1][:, _WORDS_BEFORE:]

    def _evaluate(
        self,
        transformer: Callable[..., Any],
        tokens: Float[Tensor, "m tokens c"],
        places: Float[Tensor, "tokens 3"],
        time: Float[Tensor, " m"],
        text: Text,
    ) -> Float[Tensor, "m tokens c"]:
        words, counts = words_and_mask(text)
        pictures, height, width = (int(last) + 1 for last in places.amax(0).tolist())
        return transformer(
            hidden_states=tokens,
            encoder_hidden_states=words,
            encoder_hidden_states_mask=None if counts.all() else counts,
            timestep=time,
            img_shapes=[[(1, height, width)] * pictures] * len(tokens),
            guidance=None,
        ).sample

    def _places(self, height: int, width: int, order: int) -> Tensor:
        return torch.cartesian_prod(torch.tensor([order]), torch.arange(height), torch.arange(width))


_ASKED = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a "
    "new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>"
    "{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The question that the model was trained with."""
_WORDS_BEFORE = 64
"""Of its tokens, those before the user's turn, which the transformer is not told."""
