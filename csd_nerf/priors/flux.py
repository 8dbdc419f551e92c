"""FLUX.1 (Black Forest Labs, 2024): a text-to-image model of flow matching."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.flux_kontext import FluxKontext


class Flux(FluxKontext):
    """The transformer of FLUX.1 dev or schnell, which sees the noisy picture alone.

    Args:
        parts: of `FluxKontext`.
    """

    image_conditioned = False
    told_guidance = 3.5

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        """Nothing: no channels, of the latents' size."""
        self._check_size(images)
        height, width = (side // self.vae_factor for side in images.shape[-2:])
        return images.new_zeros(len(images), 0, height, width)

    @torch.no_grad()
    def encode_source(
        self, images: Float[Tensor, "n 3 height width"], shown: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        return self.encode(images), self.condition(images if shown is None else shown)
