"""Finding, checking and loading a prior by name.

A name is that of a bundled prior, a folder in diffusers format, or a model id on the Hugging Face hub.
Importing this module and calling `check_prior` load neither diffusers nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csd_nerf.bundled import BUNDLED_PRIORS
from csd_nerf.errors import InputError
from csd_nerf.priors.autoencoder import (
    VAE_NAMES_HELP,
    VAE_WEIGHTS,
    check_vae,
    check_vae_folder,
    scaling_factor,
)
from csd_nerf.priors.base import NoiseSchedule, Prior
from csd_nerf.priors.control import (
    CONTROL_NAMES_HELP,
    CONTROL_WEIGHTS,
    NO_CONTROL,
    ControlConfig,
    check_control,
    check_control_folder,
)
from csd_nerf.priors.flow_loading import load_flow
from csd_nerf.priors.folder import (
    CONFIGS,
    SECOND_TEXT_ENCODER,
    WEIGHTS,
    check_folder,
    check_pictures,
    flow_pipeline,
    is_for_clips,
    is_image_conditioned,
    is_xl,
    read_json,
)
from csd_nerf.priors.memory import Load, check_memory
from csd_nerf.priors.motion import MOTION_NAMES_HELP, MOTION_WEIGHTS, check_motion, check_motion_folder
from csd_nerf.priors.names import find_model
from csd_nerf.priors.parts import TextPart, load_text_models, load_weights, place, place_autoencoder
from csd_nerf.priors.quantized import Quantization, check_quantization

NAMES_HELP = (
    "a bundled name (tiny-instruct, tiny-flow, tiny-sd, tiny-video), a diffusers folder, or a hub id "
    "(timbrooks/instruct-pix2pix)"
)
_WEIGHT_ENDINGS = (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")  # whole or in shards


def check_prior(name: str, *, clips_too: bool = False) -> Path | None:
    """Check, without loading anything heavy, that a prior can be what its name promises.

    Args:
        name: bundled name, folder, or hub id.
        clips_too: whether it may also be a model for clips (`Prior.clip_frames`).

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
        hint="check the spelling, or use tiny-instruct, tiny-flow, tiny-sd or, for clips, tiny-video, which "
        "need no download",
    )
    if folder is not None:
        check_folder(folder)
        if not clips_too:
            check_pictures(folder)
    return folder


def load_prior(
    name: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    vae: str = "",
    vae_dtype: torch.dtype | None = None,
    unet_batch_size: int = 20,
    vae_batch_size: int = 1,
    compile_unet: bool = False,
    quantization: Quantization = "none",
    control: ControlConfig = NO_CONTROL,
    clips_too: bool = False,
    motion: str = "",
) -> Prior:
    """Load a prior of whichever class the model is, or a `ControlNet` about it.

    Args:
        name: bundled name, folder in diffusers format, or hub id (safetensors only, no remote code).
        device: where it is to run, such as "cuda", "cuda:1" or "cpu".
        dtype: precision of the U-Net; None is float16 on CUDA, bfloat16 on a CPU that computes in it, else
            float32. Of a flow transformer None is bfloat16 on a GPU that has it, too.
        vae: folder or hub id of another autoencoder for the same latents: an AutoencoderKL or an
            AutoencoderTiny. Empty is the prior's own.
        vae_dtype: precision of the VAE; None is bfloat16 where the device computes in it and the VAE's config
            does not ask for more (`force_upcast`), else float32.
        unet_batch_size: most rows through the U-Net at once; a CSD-Edit step has 5 for each view.
        vae_batch_size: most pictures through the VAE at once.
        compile_unet: compile the U-Net with torch.compile: slow first steps, faster ones from then on.
        quantization: of the linear layers of the U-Net, or of the transformer and its text encoders: "int8"
            or "nf4" (4 bits), by bitsandbytes.
        control: a ControlNet to be put beside a text-to-image model; in the U-Net's precision.
        clips_too: whether it may also be a model for clips (`Prior.clip_frames`).
        motion: folder or hub id of layers of motion (a `MotionAdapter`) that make a model for clips of one
            for pictures; empty for none.

    Raises:
        InputError: as `check_prior`, `check_vae`, `check_control` and `check_motion`; a model that
            cannot be fetched or read; a device that is not there, or has too little memory free for the
            weights.
    """
    device = check_device(device)
    check_quantization(quantization)
    folder = check_prior(name, clips_too=clips_too)
    vae_folder = check_vae(vae, folder)
    control_folder = check_control(control, folder)
    motion_folder = check_motion(motion, folder)
    folder = folder or _download(name, clips_too)
    if vae:
        vae_folder = vae_folder or _download_vae(vae, folder)
        check_vae_folder(vae_folder, folder)
    if control.net:
        control_folder = control_folder or _download_control(control.net, folder)
        check_control_folder(control_folder, folder)
    if motion:
        motion_folder = motion_folder or _download_motion(motion, folder)
        check_motion_folder(motion_folder, folder)
    if flow_pipeline(folder) is not None:
        return load_flow(
            folder,
            device=device,
            dtype=dtype or (torch.bfloat16 if has_bfloat16(device) else automatic_dtype(device)),
            vae_dtype=vae_dtype or automatic_vae_dtype(device, read_json(folder / "vae/config.json")),
            unet_batch_size=unet_batch_size,
            vae_batch_size=vae_batch_size,
            compiled=compile_unet,
            quantization=quantization,
        )
    import diffusers
    from diffusers import ControlNetModel, DDPMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel

    from csd_nerf.priors.animated import AnimatedInstructPix2Pix, AnimatedStableDiffusion
    from csd_nerf.priors.control_net import ControlNet
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
    from csd_nerf.priors.instruct_pix2pix_xl import InstructPix2PixXL
    from csd_nerf.priors.stable_diffusion import StableDiffusion
    from csd_nerf.priors.stable_diffusion_xl import StableDiffusionXL

    dtype = dtype or automatic_dtype(device)
    own_vae = folder / "vae"
    vae_folder = vae_folder or own_vae
    vae_config = read_json(vae_folder / "config.json")
    vae_dtype = vae_dtype or automatic_vae_dtype(device, vae_config)
    text_parts = _text_parts(folder)
    loads = [
        Load("unet", folder / "unet", dtype, quantization),
        Load("vae", vae_folder, vae_dtype, as_told=False),
        *(Load(part.encoder, folder / part.encoder, torch.float32, as_told=False) for part in text_parts),
    ]
    if control_folder is not None and control.picture != "none":
        loads.append(Load("control net", control_folder, dtype))
    if motion_folder is not None:
        loads.append(Load("motion", motion_folder, dtype, quantization))
    check_memory(folder, loads, device)
    # DDPM stands for whatever scheduler the model names: only the noise levels are used, and all share those.
    scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(folder, subfolder="scheduler"))
    for_clips = motion_folder is not None or is_for_clips(folder)
    unet = load_weights(
        UNetMotionModel if is_for_clips(folder) else UNet2DConditionModel, folder / "unet", dtype
    )
    if motion_folder is not None:
        adapter = load_weights(MotionAdapter, motion_folder, dtype)
        of_pictures, unet = unet, UNetMotionModel.from_unet2d(unet, adapter, load_weights=False)
        unet.load_state_dict(of_pictures.state_dict() | adapter.state_dict(), assign=True)
    unet = place(unet, device, compile_unet, quantization)
    vae_class = getattr(diffusers, vae_config.get("_class_name", "AutoencoderKL"))
    autoencoder = load_weights(vae_class, vae_folder, vae_dtype)
    own_scale = scaling_factor(read_json(own_vae / "config.json"))
    kind: Callable[..., Prior] = AnimatedStableDiffusion if for_clips else StableDiffusion
    if is_image_conditioned(folder):
        kind = AnimatedInstructPix2Pix if for_clips else InstructPix2Pix
        kind = partial(kind, trained_scaling_factor=own_scale)
    if is_xl(folder):
        index = read_json(folder / "model_index.json")
        empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", True))
        kind = partial(StableDiffusionXL, empty_is_zero=empty_is_zero)
        if is_image_conditioned(folder):
            kind = partial(InstructPix2PixXL, empty_is_zero=empty_is_zero, trained_scaling_factor=own_scale)
    if control_folder is not None and control.picture != "none":
        net = place(load_weights(ControlNetModel, control_folder, dtype), device, compile_unet)
        kind = partial(ControlNet, control_net=net, picture=control.picture, control_scale=control.scale)
    return kind(
        unet=unet,
        vae=place_autoencoder(autoencoder, device),
        load_text=partial(load_text_models, folder, text_parts),
        schedule=NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod),
        prediction_type=scheduler.config.prediction_type,
        unet_batch_size=unet_batch_size,
        vae_batch_size=vae_batch_size,
    )


def as_dtype(precision: str) -> torch.dtype | None:
    """What an option such as `--pipeline.prior-precision` means to `load_prior`.

    Example:
        >>> as_dtype("bfloat16"), as_dtype("auto")
        (torch.bfloat16, None)
    """
    return None if precision == "auto" else getattr(torch, precision)


def automatic_dtype(device: torch.device) -> torch.dtype:
    """The precision of a U-Net for which none is given."""
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def automatic_vae_dtype(device: torch.device, config: dict[str, Any]) -> torch.dtype:
    """The precision of an autoencoder for which none is given.

    Args:
        device: where it is to run.
        config: of it. Only what it says itself counts: diffusers takes `force_upcast` for granted where a
            config is silent, as those of Stable Diffusion 1 are.
    """
    half = has_bfloat16(device) and not config.get("force_upcast")
    return torch.bfloat16 if half else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16, and does not just imitate it."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _text_parts(folder: Path) -> list[TextPart]:
    parts = [TextPart("tokenizer", "CLIPTokenizer", "text_encoder", "CLIPTextModel")]
    if is_xl(folder):
        second = "CLIPTextModelWithProjection"
        parts.append(TextPart("tokenizer_2", "CLIPTokenizer", SECOND_TEXT_ENCODER, second))
    return parts


def _download(hub_id: str, clips_too: bool) -> Path:
    """The folder of a hub model in the local cache, fetched as far as it is not there yet."""
    # Repositories also hold half-precision copies and single-file checkpoints, which are left there.
    configs = [*CONFIGS, f"{SECOND_TEXT_ENCODER}/config.json", "tokenizer/*", "tokenizer_2/*"]
    configs += ["processor/*", "text_processor/*"]
    configs.append("transformer/config.json")
    folder = _fetch(hub_id, configs, NAMES_HELP)
    check_folder(folder, with_weights=False)  # before gigabytes are fetched
    if not clips_too:
        check_pictures(folder)
    flow = flow_pipeline(folder)
    stems = {**WEIGHTS, SECOND_TEXT_ENCODER: "model"} if flow is None else flow.weights
    weights = [f"{part}/{stem}{ending}" for part, stem in stems.items() for ending in _WEIGHT_ENDINGS]
    folder = _fetch(hub_id, configs + weights, NAMES_HELP)
    check_folder(folder)
    return folder


def _download_control(hub_id: str, prior_folder: Path) -> Path:
    """The same of a ControlNet for a prior."""
    config = ["config.json"]
    check_control_folder(_fetch(hub_id, config, CONTROL_NAMES_HELP), prior_folder, with_weights=False)
    weights = [CONTROL_WEIGHTS + ending for ending in _WEIGHT_ENDINGS]
    return _fetch(hub_id, config + weights, CONTROL_NAMES_HELP)


def _download_motion(hub_id: str, prior_folder: Path) -> Path:
    """The same of layers of motion for a prior."""
    config = ["config.json"]
    check_motion_folder(_fetch(hub_id, config, MOTION_NAMES_HELP), prior_folder, with_weights=False)
    weights = [MOTION_WEIGHTS + ending for ending in _WEIGHT_ENDINGS]
    return _fetch(hub_id, config + weights, MOTION_NAMES_HELP)


def _download_vae(hub_id: str, prior_folder: Path) -> Path:
    """The same of an autoencoder for a prior."""
    config = ["config.json"]
    check_vae_folder(_fetch(hub_id, config, VAE_NAMES_HELP), prior_folder, with_weights=False)
    weights = [VAE_WEIGHTS + ending for ending in _WEIGHT_ENDINGS]
    return _fetch(hub_id, config + weights, VAE_NAMES_HELP)


def _fetch(hub_id: str, patterns: list[str], expected: str) -> Path:
    """The files of a hub model that fit the patterns, in the local cache.

    Args:
        hub_id: of the model.
        patterns: of the files' names.
        expected: kinds of names, for the message when it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(
            f"the model {hub_id!r} is given only to those who agreed to its terms",
            expected="an account of the hub that did, and is logged in here",
            got=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0],
            hint=f"agree on https://huggingface.co/{hub_id}, then `hf auth login`; or use a model that "
            "is free to all, as black-forest-labs/FLUX.2-klein-base-4B",
        ) from error
    except Exception as error:  # the hub's own, and those of whatever it talks through: proxies, TLS, ...
        raise InputError(
            f"the model {hub_id!r} is not on this machine and cannot be fetched",
            expected=expected,
            got=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0],
            hint="check name, network and access; without network use a folder, tiny-instruct or tiny-sd",
        ) from error


def check_device(device: torch.device | str) -> torch.device:
    """A device by its name.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            "the prior was to run on a device that torch does not know",
            expected="a device such as cuda, cuda:1 or cpu",
            got=repr(device),
            hint="check the spelling",
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the prior was to run on a CUDA GPU and there is none",
            expected="a CUDA GPU that torch can use",
            got="torch.cuda.is_available() is false",
            hint="choose the device cpu (with tiny-instruct), or check the driver and torch's CUDA build",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"the prior was to run on {device} and there is no such GPU",
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            got=str(device),
            hint="choose one of them",
        )
    return device
