"""Layers of motion that make a prior for pictures one for clips, checked without loading anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csd_nerf.errors import check
from csd_nerf.priors.folder import (
    check_model_weights,
    flow_pipeline,
    is_for_clips,
    is_xl,
    read_json,
)
from csd_nerf.priors.names import find_model

MOTION_WEIGHTS = "diffusion_pytorch_model"
"""How the weights' file names begin."""
MOTION_NAMES_HELP = "a folder in diffusers format or a hub id (guoyww/animatediff-motion-adapter-v1-5-3)"
_SIZES = {"block_out_channels": "block_out_channels", "motion_layers_per_block": "layers_per_block"}
"""What an adapter says of the U-Net that it was made for, and how the U-Net calls it."""


def check_motion(name: str, prior_folder: Path | None) -> Path | None:
    """Check, without loading anything heavy, that layers of motion can be put into a prior for pictures.

    Args:
        name: folder or hub id of a `MotionAdapter`; empty for none.
        prior_folder: of the prior, checked; None for one on the hub, which is checked when it is loaded.

    Returns:
        The adapter's folder; None for a hub id, which is checked when it is loaded, and for none.

    Raises:
        InputError: no such adapter; parts of it missing or unreadable; one for another U-Net, or beside a
            prior that can have none.
    """
    if not name:
        return None
    folder = find_model(
        name,
        (),
        kind="motion adapter",
        expected=MOTION_NAMES_HELP,
        hint="check the spelling, or download one and give its folder",
    )
    if prior_folder is not None:
        _check_kind(prior_folder)
    if folder is not None:
        check_motion_folder(folder, prior_folder)
    return folder


def check_motion_folder(folder: Path, prior_folder: Path | None, *, with_weights: bool = True) -> None:
    """Check that a folder holds layers of motion, and such as fit a prior's U-Net.

    Args:
        folder: the adapter's.
        prior_folder: of the prior, checked; None where it is not known yet.
        with_weights: whether the weights must be there, too.

    Raises:
        InputError: see `check_motion`.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    check(
        config.get("_class_name") == "MotionAdapter" and not config.get("conv_in_channels"),
        f"{folder} holds no layers of motion that can be used",
        expected="a folder in diffusers format whose config.json names a MotionAdapter, without a conv_in",
        got=f"{config.get('_class_name')!r}, conv_in_channels {config.get('conv_in_channels')}"
        if config
        else "no config.json",
        hint="give the adapter's own folder, not that of a pipeline",
    )
    if with_weights:
        check_model_weights(folder, MOTION_WEIGHTS, "motion adapter")
    if prior_folder is None:
        return
    _check_kind(prior_folder)
    unet = read_json(prior_folder / "unet/config.json")
    wanted = {name: _by_block(unet.get(of_unet), unet) for name, of_unet in _SIZES.items()}
    got = {name: _by_block(config.get(name), unet) for name in _SIZES}
    other = [name for name in _SIZES if wanted[name] != got[name]]
    check(
        not other,
        f"the layers of motion in {folder} were made for another U-Net",
        expected=", ".join(f"{name} {wanted[name]}" for name in other) + f", as of {prior_folder}",
        got=", ".join(f"{name} {got[name]}" for name in other),
        hint="take an adapter trained for this U-Net, or a prior of the kind that it was trained for",
    )


def _by_block(value: Any, unet: dict[str, Any]) -> Any:
    return [value] * len(unet.get("block_out_channels", ())) if isinstance(value, int) else value


def _check_kind(prior_folder: Path) -> None:
    for holds, got in (
        (flow_pipeline(prior_folder) is None, "one of flow matching"),
        (not is_for_clips(prior_folder), "one that has such layers already"),
        (not is_xl(prior_folder), "a Stable Diffusion XL"),
    ):
        check(
            holds,
            "no layers of motion can be put into this prior",
            expected="an InstructPix2Pix or a text-to-image model, of Stable Diffusion 1 or 2",
            got=f"{got}, {prior_folder}",
            hint="leave out --motion",
        )
