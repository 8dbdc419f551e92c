"""The published methods by name, each with the settings it was published with."""

from __future__ import annotations

import copy

from csd_nerf.distillation.objective import ObjectiveConfig
from csd_nerf.distillation.structure import StructureConfig
from csd_nerf.errors import InputError

# Bounds of t are fractions of 999, the last of 1000 timesteps: DDS and CDS draw 50..948, PDS 21..979.
_PRESETS = {
    "sds": ObjectiveConfig(
        residual="sds", transport="independent", min_timestep=0.02, max_timestep=0.98, text_guidance=100.0
    ),
    "csd": ObjectiveConfig(
        residual="sds", transport="svgd", min_timestep=0.02, max_timestep=0.98, text_guidance=100.0
    ),
    "dds": ObjectiveConfig(
        residual="dds", transport="independent", min_timestep=0.05, max_timestep=0.949, text_guidance=7.5
    ),
    "csd-edit": ObjectiveConfig(),
    "cds": ObjectiveConfig(
        residual="dds",
        transport="independent",
        min_timestep=0.05,
        max_timestep=0.949,
        text_guidance=7.5,
        structure=StructureConfig(loss="cut"),
    ),
    "pds": ObjectiveConfig(
        residual="pds", transport="independent", min_timestep=0.021, max_timestep=0.98, text_guidance=100.0
    ),
}
PRESETS = tuple(_PRESETS)
"""Names of the methods."""


def preset(name: str) -> ObjectiveConfig:
    """A published method's settings; a new object each time, to be changed at will.

    - `sds`: Score Distillation Sampling (Poole et al., 2209.14988), t and guidance as in DreamFusion.
    - `csd`: Collaborative Score Distillation (Kim et al., 2307.04787): `sds` with SVGD. With one view it is
      `sds`.
    - `dds`: Delta Denoising Score (Hertz et al., 2304.07090), as in the released notebook.
    - `csd-edit`: CSD-Edit (2307.04787), as for scenes but for the kernel, see `ObjectiveConfig`.
    - `cds`: Contrastive Denoising Score (Nam et al., 2311.18608): `dds` with the structure loss `cut`.
    - `pds`: Posterior Distillation Sampling (Koo et al., 2311.13831), as released.

    Raises:
        InputError: there is no such method.

    Example:
        >>> preset("cds").structure.weight
        3.0
    """
    if name not in PRESETS:
        raise InputError(
            "there is no published method of this name",
            expected=", ".join(PRESETS),
            got=repr(name),
            hint="or put one together from residual, transport and structure loss",
        )
    return copy.deepcopy(_PRESETS[name])
