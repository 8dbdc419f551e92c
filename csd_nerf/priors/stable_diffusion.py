"""Stable Diffusion (Rombach et al., 2112.10752): it knows what a description looks like."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import GuidedBy
from csd_nerf.priors.latent_diffusion import LatentDiffusion


class StableDiffusion(LatentDiffusion):
    """A U-Net that sees the noisy latents alone."""

    image_conditioned = False
    guided_by: GuidedBy = "text"

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        """Nothing: no channels, of the latents' size."""
        self._check_size(images)
        height, width = (side // self.vae_factor for side in images.shape[-2:])
        return images.new_zeros(len(images), 0, *images.shape[2:-2], height, width)
