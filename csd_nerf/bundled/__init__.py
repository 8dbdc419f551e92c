"""The small models that ship with the package, each a folder in diffusers format with a model card."""

from __future__ import annotations

from pathlib import Path

from csd_nerf.errors import InputError

BUNDLED_EDITORS: tuple[str, ...] = ("tiny-instruct", "tiny-flow")
"""Those that are told what to do, `scenes.operators.KNOWN_INSTRUCTIONS`."""
BUNDLED_CLIP_EDITOR = "tiny-video"
"""The same instructions, for a clip."""
BUNDLED_PRIORS: tuple[str, ...] = (*BUNDLED_EDITORS, "tiny-sd", BUNDLED_CLIP_EDITOR)
BUNDLED_CONTROL_NETS: tuple[str, ...] = ("tiny-depth",)


def bundled_path(name: str) -> Path:
    """Folder of a bundled prior or ControlNet.

    Raises `InputError` when there is none of that name.

    >>> bundled_path("tiny-instruct").name
    'tiny_instruct'
    """
    if name not in BUNDLED_PRIORS + BUNDLED_CONTROL_NETS:
        raise InputError(
            "no bundled model has this name",
            expected=" or ".join(BUNDLED_PRIORS + BUNDLED_CONTROL_NETS),
            got=repr(name),
            hint="give a bundled name, a folder in diffusers format or the id of a model on the hub",
        )
    return Path(__file__).parent / name.replace("-", "_")
