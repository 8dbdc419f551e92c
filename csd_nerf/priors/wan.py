"""Wan (Alibaba, 2503.20314) and Lucy Edit (Decart, 2025): models of flow matching for clips."""

from __future__ import annotations

import html
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.priors.base import Text
from csd_nerf.priors.flow_prior import FlowPrior
from csd_nerf.priors.folder import PATCH


class Wan(FlowPrior):
    """Wan's transformer, which makes clips of descriptions, from diffusers' components.

    It predicts the velocity from clip to noise as `FlowTransformer` does. Its VAE knows of time: the first
    frame is a latent of its own, and every four after it one. A token is 2 x 2 of the VAE's latents, and the
    latents outside are those: c is four times the VAE's, `vae_factor` twice its own.

    Args:
        transformer: `WanTransformer3DModel`, told time in 0 to 1000.
        vae: `AutoencoderKLWan`.
        parts: the rest, of `FlowPrior`.
    """

    image_conditioned = False
    clip_frames = 81
    self_attention_layers = 0

    def __init__(self, *, vae: Any, **parts: Any) -> None:
        super().__init__(vae=vae, **parts)
        self.latent_channels = PATCH**2 * vae.config["z_dim"]
        self.vae_factor = PATCH * vae.config["scale_factor_spatial"]
        self.frame_factor = vae.config["scale_factor_temporal"]
        self.native_size = _SHORT_SIDE // self.vae_factor * self.vae_factor
        self._mean, self._deviation = (
            torch.tensor(vae.config[name], device=self.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 frames height width"]) -> Float[Tensor, "n k f h w"]:
        """Nothing: no channels, of the latents' size."""
        self._check_size(images)
        frames = 1 + (images.shape[2] - 1) // self.frame_factor
        height, width = (side // self.vae_factor for side in images.shape[-2:])
        return images.new_zeros(len(images), 0, frames, height, width)

    @torch.no_grad()
    def predict_noise(
        self,
        noisy: Float[Tensor, "m c f h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k f h w"] | None,
    ) -> Float[Tensor, "m c f h w"]:
        rows = _unpacked(noisy)
        if condition is not None and condition.shape[1]:
            rows = torch.cat([rows, _unpacked(condition)], dim=1)
        rows, most = rows.to(self.dtype), self._rows_at_once(noisy)
        velocities = []
        for start in range(0, len(rows), most):
            some = slice(start, start + most)
            time = torch.full((len(rows[some]),), t, device=self.device)
            with self._own_precision():
                velocities.append(self.transformer(rows[some], time, text[some]).sample.float())
        self.unet_evaluations += len(rows)
        return noisy + self.schedule.alphas[t].item() * _packed(torch.cat(velocities))

    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c f h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k f h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        """None: `self_attention_layers` is 0."""
        return []

    def _scaled(self, encoded: Float[Tensor, "n _ f _ _"]) -> Float[Tensor, "n c f h w"]:
        return _packed((encoded - self._mean) / self._deviation)

    def _unscaled(self, latents: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n _ f _ _"]:
        return _unpacked(latents) * self._deviation + self._mean

    def _encode_text(self, prompts: list[str]) -> Tensor:
        """Words of UMT5; what a prompt does not fill is zeros."""
        ((tokenizer, encoder),) = self._load_text()
        encoder = encoder.eval().to(self.device)
        cleaned = [" ".join(html.unescape(html.unescape(prompt)).split()) for prompt in prompts]
        tokens = self._tokens(tokenizer, cleaned, min(_WORDS, tokenizer.model_max_length))
        with self._own_precision():
            words = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return (words * tokens.attention_mask[..., None]).to(self.dtype)


class LucyEdit(Wan):
    """Wan 2.2's transformer that edits the clip whose latents it sees beside the noisy ones, by instruction.

    Args:
        parts: of `Wan`.
    """

    image_conditioned = True

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 frames height width"]) -> Float[Tensor, "n k f h w"]:
        """The clips' own latents."""
        return self.encode(images)

    @torch.no_grad()
    def encode_source(
        self, images: Float[Tensor, "n 3 frames height width"], shown: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c f h w"], Float[Tensor, "n k f h w"]]:
        latents = self.encode(images)
        return latents, latents if shown is None or shown is images else self.condition(shown)


def _packed(latents: Float[Tensor, "n _ f _ _"]) -> Float[Tensor, "n c f h w"]:
    return functional.pixel_unshuffle(latents.transpose(1, 2), PATCH).transpose(1, 2)


def _unpacked(latents: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n _ f _ _"]:
    return functional.pixel_shuffle(latents.transpose(1, 2), PATCH).transpose(1, 2)


_SHORT_SIDE = 480
"""Of the clips, in pixels, that Wan 2.1's smallest and Lucy Edit were made for."""
_WORDS = 512
"""Tokens of UMT5 that the model is told; longer prompts are cut off."""
