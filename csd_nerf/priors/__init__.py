"""Frozen diffusion models behind one contract.

Light to import: diffusers and transformers are loaded by `load_prior`, not here.
"""

from csd_nerf.priors.base import NoiseSchedule, Prior
from csd_nerf.priors.control import ControlConfig, check_control
from csd_nerf.priors.loading import check_prior, load_prior

__all__ = ["ControlConfig", "NoiseSchedule", "Prior", "check_control", "check_prior", "load_prior"]
