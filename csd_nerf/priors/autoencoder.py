"""Another autoencoder in the place of the prior's own, checked without loading anything heavy."""

from __future__ import annotations

from pathlib import Path

from csd_nerf.errors import InputError, check
from csd_nerf.priors.folder import (
    USUAL_SCALING_FACTOR,
    check_autoencoder,
    check_model_weights,
    flow_pipeline,
    pixels_per_latent,
    read_json,
)
from csd_nerf.priors.names import find_model

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
VAE_WEIGHTS = "diffusion_pytorch_model"
"""How the weights' file names begin."""
VAE_NAMES_HELP = "a folder in diffusers format or a hub id (madebyollin/taesd, for Stable Diffusion 1 and 2)"


def check_vae(name: str, prior_folder: Path | None) -> Path | None:
    """Check, without loading anything heavy, that an autoencoder can take the place of the prior's own.

    Args:
        name: folder or hub id; empty for the prior's own.
        prior_folder: of the prior, checked; None for one on the hub, which is checked when it is loaded.

    Returns:
        The autoencoder's folder; None for a hub id, which is checked when it is loaded, and for none.

    Raises:
        InputError: no such autoencoder; parts of it missing or unreadable; one of another class; one of
            other latents than the prior's.
    """
    if not name:
        return None
    folder = find_model(
        name,
        (),
        kind="autoencoder",
        expected=VAE_NAMES_HELP,
        hint="check the spelling, or leave it out for the prior's own",
    )
    if folder is not None:
        check_vae_folder(folder, prior_folder)
    return folder


def check_vae_folder(folder: Path, prior_folder: Path | None, *, with_weights: bool = True) -> None:
    """Check that a folder holds an autoencoder, and one with the latents of the prior's own.

    Args:
        folder: the autoencoder's.
        prior_folder: of the prior, checked; None where it is not known yet.
        with_weights: whether the weights must be there, too.

    Raises:
        InputError: see `check_vae`.
    """
    check(
        (folder / "config.json").is_file(),
        f"{folder} holds no autoencoder",
        expected="a folder in diffusers format whose config.json names an " + " or an ".join(CLASSES),
        got="no config.json",
        hint="give the autoencoder's own folder: of a pipeline, the folder vae in it",
    )
    config = read_json(folder / "config.json")
    check_autoencoder(folder, config, CLASSES)
    if with_weights:
        check_model_weights(folder, VAE_WEIGHTS, "autoencoder")
    if prior_folder is None:
        return
    check(
        flow_pipeline(prior_folder) is None,
        "another autoencoder cannot be put into a prior of flow matching",
        expected="the prior's own",
        got=str(folder),
        hint="leave out --pipeline.vae (--vae of the editors)",
    )
    own = read_json(prior_folder / "vae/config.json")
    # An AutoencoderTiny gives scaled latents as they are.
    scale = 1.0 if config.get("_class_name") == "AutoencoderTiny" else scaling_factor(own)
    rows = (
        ("latent channels", own.get("latent_channels"), config.get("latent_channels", 4)),
        ("pixels per latent", pixels_per_latent(own), pixels_per_latent(config)),
        ("scaling_factor", scale, scaling_factor(config)),
    )
    other = [row for row in rows if row[1] != row[2]]
    if other:
        raise InputError(
            f"the autoencoder in {folder} was made for another prior",
            expected=", ".join(f"{name} {wanted}" for name, wanted, _ in other) + f", for {prior_folder}",
            got=", ".join(f"{name} {got}" for name, _, got in other),
            hint="take one made for this prior's latents, or leave it out for the prior's own",
        )


def scaling_factor(config: dict[str, object]) -> float:
    """Of an autoencoder's latents, from its config."""
    usual = 1.0 if config.get("_class_name") == "AutoencoderTiny" else USUAL_SCALING_FACTOR
    return float(str(config.get("scaling_factor", usual)))
