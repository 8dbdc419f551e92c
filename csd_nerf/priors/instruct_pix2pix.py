"""InstructPix2Pix (Brooks et al., 2211.09800): a model that edits the picture it is shown, by instruction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.latent_diffusion import LatentDiffusion


class InstructPix2Pix(LatentDiffusion):
    """A U-Net that sees the source picture's latents beside the noisy ones."""

    image_conditioned = True

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n k h w"]:
        """Mode of the posterior, *not* multiplied by the scaling factor, as InstructPix2Pix was trained."""
        return self._posterior_mode(images)
