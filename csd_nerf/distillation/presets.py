"""The published methods by name, with the settings that their files in `configs/` have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from csd_nerf.distillation.descent import DescentConfig
from csd_nerf.distillation.objective import ObjectiveConfig
from csd_nerf.errors import InputError
from csd_nerf.settings_files import method_file, read_method, set_options

_METHODS = {
    "sds": "sds-edit",
    "csd": "csd-generate",
    "dds": "dds-edit",
    "csd-edit": "csd-edit",
    "cds": "cds-edit",
    "pds": "pds-edit",
}
"""The method of nerfstudio's that each belongs to: its file has the numbers."""
PRESETS = tuple(_METHODS)
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
    return _objective(name, _read(name))


@dataclass
class LatentEditConfig:
    """How a picture's latents are edited without a scene."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is distilled."""
    descent: DescentConfig = field(default_factory=DescentConfig)
    """How far the latents go along it."""


def latent_edit(name: str, prior: str, *, translator: bool = False) -> LatentEditConfig:
    """What a published method begins with on pictures and clips.

    Args:
        name: one of `PRESETS`.
        prior: of a bundled one, by its name, the values are those that suit it.
        translator: with what a network differs in that is trained to make the edit.

    Raises:
        InputError: there is no such method.
    """
    settings = _read(name)
    config = LatentEditConfig(_objective(name, settings))
    for section in ("editors", "translators") if translator else ("editors",):
        values = dict(settings.get(section, {}))
        suited = values.pop("priors", {})
        for chosen in (values, suited.get(prior, {})):
            set_options(config, chosen, method_file(_METHODS[name]), path=(section,))
    return config


def _objective(name: str, settings: dict[str, Any]) -> ObjectiveConfig:
    config = ObjectiveConfig()
    set_options(config, settings["objective"], method_file(_METHODS[name]), path=("objective",))
    return config


def _read(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise InputError(
            "there is no published method of this name",
            expected=", ".join(PRESETS),
            got=repr(name),
            hint="or put one together from residual, transport and structure loss",
        )
    return read_method(_METHODS[name])
