"""The small priors that ship with the package, each a folder in diffusers format with a model card."""

from __future__ import annotations

from pathlib import Path

from csd_nerf.errors import InputError

BUNDLED_PRIORS: tuple[str, ...] = ("tiny-instruct",)


def bundled_path(name: str) -> Path:
    """Folder of a bundled prior.

    Raises `InputError` when there is no bundled prior of that name.

    >>> bundled_path("tiny-instruct").name
    'tiny_instruct'
    """
    if name not in BUNDLED_PRIORS:
        raise InputError(
            "no bundled prior has this name",
            expected=" or ".join(BUNDLED_PRIORS),
            got=repr(name),
            hint="give a bundled name, a folder in diffusers format or the id of a model on the hub",
        )
    return Path(__file__).parent / name.replace("-", "_")
