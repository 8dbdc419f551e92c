"""Finding, checking and loading a prior by name.

A name is that of a bundled prior, a folder in diffusers format, or a model id on the Hugging Face hub.
Importing this module and calling `check_prior` load neither diffusers nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from csd_nerf.bundled import BUNDLED_PRIORS
from csd_nerf.errors import InputError
from csd_nerf.priors.base import NoiseSchedule, Prior
from csd_nerf.priors.control import (
    CONTROL_NAMES_HELP,
    CONTROL_WEIGHTS,
    NO_CONTROL,
    ControlConfig,
    check_control,
    check_control_folder,
)
from csd_nerf.priors.folder import (
    CONFIGS,
    REPAIR_HINT,
    SECOND_TEXT_ENCODER,
    WEIGHTS,
    check_folder,
    is_image_conditioned,
    is_xl,
    read_json,
)
from csd_nerf.priors.names import find_model

if TYPE_CHECKING:
    from csd_nerf.priors.latent_diffusion import TextModels

NAMES_HELP = (
    "a bundled name (tiny-instruct, tiny-sd), a diffusers folder, or a hub id (timbrooks/instruct-pix2pix)"
)
PREDICTION_TYPES = ("epsilon", "v_prediction")
_WEIGHT_ENDINGS = (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")  # whole or in shards


def check_prior(name: str) -> Path | None:
    """Check, without loading anything heavy, that a prior can be what its name promises.

    Args:
        name: bundled name, folder, or hub id.

    Returns:
        The prior's folder, or None for a hub id, which is checked when it is loaded.

    Raises:
        InputError: no such prior; parts of the folder missing or unreadable; a model of another kind.
    """
    folder = find_model(
        name,
        BUNDLED_PRIORS,
        kind="prior",
        expected=NAMES_HELP,
        hint="check the spelling, or use tiny-instruct or tiny-sd, which need no download",
    )
    if folder is not None:
        check_folder(folder)
    return folder


def load_prior(
    name: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    unet_batch_size: int = 20,
    vae_batch_size: int = 1,
    compile_unet: bool = False,
    control: ControlConfig = NO_CONTROL,
) -> Prior:
    """Load a prior: an `InstructPix2Pix`, a `StableDiffusion` or a `StableDiffusionXL`, whichever the model
    is, or a `ControlNet`.

    Args:
        name: bundled name, folder in diffusers format, or hub id (safetensors only, no remote code).
        device: where it is to run, such as "cuda", "cuda:1" or "cpu".
        dtype: precision of the U-Net; None is float16 on CUDA, float32 on a CPU. The VAE is always float32.
        unet_batch_size: most rows through the U-Net at once; a CSD-Edit step has 5 for each view.
        vae_batch_size: most pictures through the VAE at once.
        compile_unet: compile the U-Net with torch.compile: slow first steps, faster ones from then on.
        control: a ControlNet to be put beside a text-to-image model; in the U-Net's precision.

    Raises:
        InputError: as `check_prior` and `check_control`; a model that cannot be fetched or read; CUDA asked
            for and absent.
    """
    device = _check_device(device)
    folder = check_prior(name)
    control_folder = check_control(control, folder)
    folder = folder or _download(name)
    if control.net:
        control_folder = control_folder or _download_control(control.net, folder)
        check_control_folder(control_folder, folder)
    from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel

    from csd_nerf.priors.control_net import ControlNet
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
    from csd_nerf.priors.stable_diffusion import StableDiffusion
    from csd_nerf.priors.stable_diffusion_xl import StableDiffusionXL

    # DDPM stands for whatever scheduler the model names: only the noise levels are used, and all share those.
    scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(folder, subfolder="scheduler"))
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise InputError(
            "the prior predicts something that cannot be turned into noise",
            expected=" or ".join(PREDICTION_TYPES),
            got=f"prediction_type {scheduler.config.prediction_type!r} in its scheduler's config",
            hint="use another model",
        )
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet = _place(_load_weights(UNet2DConditionModel, folder, "unet", dtype), device, compile_unet)
    vae = _load_weights(AutoencoderKL, folder, "vae", torch.float32)
    kind: Callable[..., Prior] = InstructPix2Pix if is_image_conditioned(folder) else StableDiffusion
    if is_xl(folder):
        index = read_json(folder / "model_index.json")
        kind = partial(StableDiffusionXL, empty_is_zero=bool(index.get("force_zeros_for_empty_prompt", True)))
    if control_folder is not None and control.picture != "none":
        net = _place(_load_weights(ControlNetModel, control_folder, None, dtype), device, compile_unet)
        kind = partial(ControlNet, control_net=net, picture=control.picture, control_scale=control.scale)
    return kind(
        unet=unet,
        vae=vae.to(device),
        load_text=partial(_load_text, folder),
        schedule=NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod),
        prediction_type=scheduler.config.prediction_type,
        unet_batch_size=unet_batch_size,
        vae_batch_size=vae_batch_size,
    )


def _place(model: Any, device: torch.device, compiled: bool) -> Any:
    """A U-Net or ControlNet where it is to run, in the form that is fast there."""
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # slower on CPUs
    if compiled:
        model.compile()
    return model.to(device)


def _load_weights(model: Any, folder: Path, part: str | None, dtype: torch.dtype) -> Any:
    """A diffusers model, part or all of a folder; weights that do not fit its config are bad input."""
    try:
        return model.from_pretrained(folder, subfolder=part, torch_dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the {part or model.__name__} in {folder} cannot be loaded",
            expected="weights that fit its config.json",
            got=str(error).strip()[:300],
            hint=REPAIR_HINT,
        ) from error


def _load_text(folder: Path) -> TextModels:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    parts: list[tuple[str, str, Any]] = [("tokenizer", "text_encoder", CLIPTextModel)]
    if is_xl(folder):
        parts.append(("tokenizer_2", SECOND_TEXT_ENCODER, CLIPTextModelWithProjection))
    try:
        return [
            (
                CLIPTokenizer.from_pretrained(folder, subfolder=tokenizer),
                model.from_pretrained(folder, subfolder=part, use_safetensors=True).float(),
            )
            for tokenizer, part, model in parts
        ]
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the tokenizer or text encoder in {folder} cannot be loaded",
            expected="a CLIP tokenizer, and a CLIP text model whose weights fit its config.json",
            got=str(error).strip()[:300],
            hint=REPAIR_HINT,
        ) from error


def _download(hub_id: str) -> Path:
    """The folder of a hub model in the local cache, fetched as far as it is not there yet."""
    # Repositories also hold half-precision copies and single-file checkpoints, which are left there.
    configs = [*CONFIGS, f"{SECOND_TEXT_ENCODER}/config.json", "tokenizer/*", "tokenizer_2/*"]
    stems = {**WEIGHTS, SECOND_TEXT_ENCODER: "model"}
    weights = [f"{part}/{stem}{ending}" for part, stem in stems.items() for ending in _WEIGHT_ENDINGS]
    check_folder(_fetch(hub_id, configs), with_weights=False)  # before gigabytes are fetched
    folder = _fetch(hub_id, configs + weights)
    check_folder(folder)
    return folder


def _download_control(hub_id: str, prior_folder: Path) -> Path:
    """The same of a ControlNet for a prior."""
    check_control_folder(_fetch(hub_id, ["config.json"]), prior_folder, with_weights=False)
    return _fetch(hub_id, ["config.json", *(CONTROL_WEIGHTS + ending for ending in _WEIGHT_ENDINGS)])


def _fetch(hub_id: str, patterns: list[str]) -> Path:
    """The files of a hub model that fit the patterns, in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub's own, and those of whatever it talks through: proxies, TLS, ...
        raise InputError(
            f"the model {hub_id!r} is not on this machine and cannot be fetched",
            expected=NAMES_HELP if "unet/config.json" in patterns else CONTROL_NAMES_HELP,
            got=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0],
            hint="check name, network and access; without network use a folder, tiny-instruct or tiny-sd",
        ) from error


def _check_device(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the prior was to run on a CUDA GPU and there is none",
            expected="a CUDA GPU that torch can use",
            got="torch.cuda.is_available() is false",
            hint="choose the device cpu (with tiny-instruct), or check the driver and torch's CUDA build",
        )
    return device
