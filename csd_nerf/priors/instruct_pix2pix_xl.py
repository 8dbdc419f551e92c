"""InstructPix2Pix on Stable Diffusion XL: what edits the picture it is shown, told by two text encoders."""

from __future__ import annotations

from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
from csd_nerf.priors.stable_diffusion_xl import StableDiffusionXL


class InstructPix2PixXL(InstructPix2Pix, StableDiffusionXL):
    """Shown the picture as an `InstructPix2Pix` is, told the prompt as a `StableDiffusionXL` is."""
