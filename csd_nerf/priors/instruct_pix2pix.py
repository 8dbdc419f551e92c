"""InstructPix2Pix (Brooks et al., 2211.09800): a model that edits the picture it is shown, by instruction."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import GuidedBy
from csd_nerf.priors.latent_diffusion import LatentDiffusion


class InstructPix2Pix(LatentDiffusion):
    """A U-Net that sees the source picture's latents beside the noisy ones.

    Args:
        trained_scaling_factor: of the autoencoder that the model was trained with; None for that of the one
            it has.
        parts: of `LatentDiffusion`.
    """

    image_conditioned = True
    guided_by: GuidedBy = "picture-and-text"

    def __init__(self, *, trained_scaling_factor: float | None = None, **parts: Any) -> None:
        super().__init__(**parts)
        self._trained_scaling_factor = trained_scaling_factor or self.scaling_factor

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        """Mode of the posterior, *not* multiplied by the scaling factor, as InstructPix2Pix was trained."""
        return self.encode(images) / self._trained_scaling_factor

    @torch.no_grad()
    def encode_source(
        self, images: Float[Tensor, "n 3 height width"], shown: Tensor | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        if shown is not None and shown is not images:
            return super().encode_source(images, shown)
        latents = self.encode(images)
        return latents, latents / self._trained_scaling_factor
