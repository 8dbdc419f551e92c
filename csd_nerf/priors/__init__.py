"""Frozen diffusion models behind one contract.

Light to import: diffusers and transformers are loaded by `load_prior`, not here.
"""

from csd_nerf.priors.autoencoder import check_vae
from csd_nerf.priors.base import NoiseSchedule, Prior, Text, TextParts
from csd_nerf.priors.control import ControlConfig, check_control
from csd_nerf.priors.loading import as_dtype, check_prior, load_prior
from csd_nerf.priors.motion import check_motion

__all__ = [
    "ControlConfig",
    "NoiseSchedule",
    "Prior",
    "Text",
    "TextParts",
    "as_dtype",
    "check_control",
    "check_motion",
    "check_prior",
    "check_vae",
    "load_prior",
]
