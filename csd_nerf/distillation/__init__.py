"""Score distillation over several views at once: residuals, transport, structure, and their objective.

Needs torch only; neither nerfstudio nor diffusers is imported.

Example:
    >>> import torch
    >>> from csd_nerf.distillation import svgd
    >>> scores, particles = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    >>> svgd(scores, particles).shape
    torch.Size([4, 4, 8, 8])
"""

from csd_nerf.distillation.descent import DescentConfig, edit_latents
from csd_nerf.distillation.flow_edit import flow_edit
from csd_nerf.distillation.objective import Distilled, NonFiniteResidual, Objective, ObjectiveConfig
from csd_nerf.distillation.presets import PRESETS, preset
from csd_nerf.distillation.residuals import (
    RESIDUALS,
    Guidance,
    Views,
    check_fit,
    csd_edit,
    dds,
    dreamcatalyst,
    dvrf,
    evaluations,
    pds,
    pds_coefficients,
    sds,
    ssd,
)
from csd_nerf.distillation.sampling import ddim_step, ddim_timesteps, sample_edit
from csd_nerf.distillation.schedule import TimestepRange, weight
from csd_nerf.distillation.structure import StructureConfig, patch_nce, structure_gradient
from csd_nerf.distillation.transport import independent, stein_kernel, svgd

__all__ = [
    "PRESETS",
    "RESIDUALS",
    "DescentConfig",
    "Distilled",
    "Guidance",
    "NonFiniteResidual",
    "Objective",
    "ObjectiveConfig",
    "StructureConfig",
    "TimestepRange",
    "Views",
    "check_fit",
    "csd_edit",
    "ddim_step",
    "ddim_timesteps",
    "dds",
    "dreamcatalyst",
    "dvrf",
    "edit_latents",
    "evaluations",
    "flow_edit",
    "independent",
    "patch_nce",
    "pds",
    "pds_coefficients",
    "preset",
    "sample_edit",
    "sds",
    "ssd",
    "stein_kernel",
    "structure_gradient",
    "svgd",
    "weight",
]
