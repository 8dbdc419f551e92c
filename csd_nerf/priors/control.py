"""The setting that puts a ControlNet beside a prior, checked without loading anything heavy."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from csd_nerf.bundled import BUNDLED_CONTROL_NETS
from csd_nerf.errors import InputError, check, option
from csd_nerf.priors.folder import (
    check_model_weights,
    is_for_clips,
    is_image_conditioned,
    is_xl,
    read_json,
    vae_factor,
)
from csd_nerf.priors.names import find_model

CONTROL_NAMES_HELP = (
    "a bundled name (tiny-depth, for tiny-sd), a folder in diffusers format or a hub id "
    "(lllyasviel/sd-controlnet-depth)"
)
CONTROL_WEIGHTS = "diffusion_pytorch_model"
"""How the weights' file names begin."""
_SIZES: dict[str, Any] = {
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
}
"""What a ControlNet and its U-Net must have in common, and what diffusers takes where a config is silent."""


@dataclass
class ControlConfig:
    """What a text-to-image prior is shown of the source, by a ControlNet."""

    net: str = ""
    """ControlNet beside a text-to-image prior: a hub id such as lllyasviel/sd-controlnet-depth, a folder in
    diffusers format, or `tiny-depth`, which ships with the package for tiny-sd. Empty for none."""
    picture: Literal["none", "depth", "canny"] = "none"
    """What it is shown of the source: depth (rendered from the scene before the edit) or canny (edges of the
    photos), whichever it was trained with."""
    scale: float = 1.0
    """How closely it is followed; 0 is not at all, 1 as it was trained."""

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            InputError: a ControlNet without a picture or a picture without a ControlNet; a scale that is
                negative or not finite.
        """
        check(
            bool(self.net) or self.picture == "none",
            f"the picture {self.picture} needs a ControlNet that is shown it",
            expected=CONTROL_NAMES_HELP,
            got="no ControlNet",
            hint=f"add `--pipeline.control.net lllyasviel/sd-controlnet-{self.picture}` (for Stable "
            "Diffusion 1.5)",
        )
        check(
            not self.net or self.picture != "none",
            f"it was not said what the ControlNet {self.net} is shown",
            expected="the kind of picture that it was trained with, depth or canny",
            got="--pipeline.control.picture none",
            hint="add `--pipeline.control.picture depth` or `canny`",
        )
        check(
            0 <= self.scale < math.inf,
            option("pipeline.control.scale"),
            expected="a number that is not negative",
            got=self.scale,
            hint="leave it at 1",
        )


NO_CONTROL = ControlConfig()


def check_control(control: ControlConfig, prior_folder: Path | None) -> Path | None:
    """Check, without loading anything heavy, that a ControlNet can be put beside a prior.

    Args:
        control: the setting.
        prior_folder: of the prior, checked; None for one on the hub, which is checked when it is loaded.

    Returns:
        The ControlNet's folder; None for a hub id, which is checked when it is loaded, and for no ControlNet.

    Raises:
        InputError: as `ControlConfig.check`; no such ControlNet; parts of it missing or unreadable; a
            ControlNet for another U-Net, or beside a prior that is no text-to-image model.
    """
    control.check()
    if not control.net:
        return None
    if prior_folder is not None:
        _check_kind(prior_folder)
    folder = find_model(
        control.net,
        BUNDLED_CONTROL_NETS,
        kind="ControlNet",
        expected=CONTROL_NAMES_HELP,
        hint="check the spelling, or download one and give its folder",
    )
    if folder is not None:
        check_control_folder(folder, prior_folder)
    return folder


def check_control_folder(folder: Path, prior_folder: Path | None, *, with_weights: bool = True) -> None:
    """Check that a folder holds a ControlNet, and one for the prior's U-Net and VAE.

    Args:
        folder: the ControlNet's.
        prior_folder: of the prior, checked; None where it is not known yet.
        with_weights: whether the weights must be there, too.

    Raises:
        InputError: see `check_control`.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") != "ControlNetModel" or config.get("conditioning_channels", 3) != 3:
        raise InputError(
            f"{folder} holds no ControlNet that can be used",
            expected="a folder in diffusers format whose config.json names a ControlNetModel for pictures of "
            "3 channels",
            got=f"{config.get('_class_name')!r}, {config.get('conditioning_channels', 3)} channels"
            if config
            else "no config.json",
            hint="give the ControlNet's own folder, not that of a pipeline",
        )
    if with_weights:
        check_model_weights(folder, CONTROL_WEIGHTS, "ControlNet")
    if prior_folder is not None:
        _check_kind(prior_folder)
        _check_fit(folder, config, prior_folder)


def _check_kind(prior_folder: Path) -> None:
    check(
        not is_for_clips(prior_folder),
        "a ControlNet cannot be put beside a prior for clips",
        expected="a text-to-image prior",
        got=f"a model that sees several frames at once, {prior_folder}",
        hint="leave out the ControlNet, or use stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
    if is_image_conditioned(prior_folder):
        raise InputError(
            "a ControlNet cannot be put beside a prior that is shown the source picture already",
            expected="a text-to-image prior",
            got=f"a model that edits pictures, as InstructPix2Pix does, {prior_folder}",
            hint="leave out --pipeline.control, or use stable-diffusion-v1-5/stable-diffusion-v1-5 or "
            "another text-to-image model",
        )


def _check_fit(folder: Path, config: dict[str, Any], prior_folder: Path) -> None:
    if is_xl(prior_folder) or config.get("addition_embed_type"):
        raise InputError(
            "ControlNets of Stable Diffusion XL cannot be used",
            expected="a ControlNet and a prior of Stable Diffusion 1 or 2",
            got=f"{folder} beside {prior_folder}",
            hint="leave out --pipeline.control, or use stable-diffusion-v1-5/stable-diffusion-v1-5",
        )
    unet = read_json(prior_folder / "unet/config.json")
    wanted = {name: unet.get(name, usual) for name, usual in _SIZES.items()}
    got = {name: config.get(name, usual) for name, usual in _SIZES.items()}
    # The embedding halves the picture once between each two of its stages, until it has the latents' size.
    stages = config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))
    wanted["pixels per latent"], got["pixels per latent"] = vae_factor(prior_folder), 2 ** (len(stages) - 1)
    other = [name for name in wanted if wanted[name] != got[name]]
    if other:
        raise InputError(
            f"the ControlNet in {folder} was made for another prior",
            expected=", ".join(f"{name} {wanted[name]}" for name in other) + f", as of {prior_folder}",
            got=", ".join(f"{name} {got[name]}" for name in other),
            hint="take a ControlNet trained for this prior, or the prior that it was trained for",
        )
