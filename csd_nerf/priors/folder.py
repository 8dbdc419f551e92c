"""Checking a model folder in diffusers format with nothing but the standard library and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from csd_nerf.errors import InputError

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Folder of each part with weights, and how the weights' file names begin."""
SECOND_TEXT_ENCODER = "text_encoder_2"
"""Of SDXL; its tokenizer is in `tokenizer_2`."""
CONFIGS = (
    "model_index.json",
    *(f"{part}/config.json" for part in WEIGHTS),
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either will do: without any, a tokenizer would take every word for an unknown one."""
REPAIR_HINT = "save the model again with its pipeline's save_pretrained(folder), or download it again"


def check_folder(folder: Path, *, with_weights: bool = True) -> None:
    """Check that a folder holds a whole prior: every part, readable, and of a kind that can be used.

    Args:
        folder: the model's folder.
        with_weights: whether the weights must be there, too.

    Raises:
        InputError: naming everything that is missing, or the first file that cannot be read.
    """
    configs, parts, tokenizers = list(CONFIGS), dict(WEIGHTS), ["tokenizer"]
    if (folder / "unet/config.json").is_file() and is_xl(folder):
        configs += [f"{SECOND_TEXT_ENCODER}/config.json", "tokenizer_2/tokenizer_config.json"]
        parts[SECOND_TEXT_ENCODER] = "model"
        tokenizers.append("tokenizer_2")
    missing = [name for name in configs if not (folder / name).is_file()]
    weights = {
        part: list((folder / part).glob(f"{stem}*.safetensors"))
        for part, stem in parts.items()
        if with_weights
    }
    for tokenizer in tokenizers:
        names = [[f"{tokenizer}/{name}" for name in either] for either in VOCABULARIES]
        if not any(all((folder / name).is_file() for name in either) for either in names):
            missing.append(" or ".join(" and ".join(either) for either in names))
    missing += [f"{part}/{parts[part]}.safetensors" for part, files in weights.items() if not files]
    if missing:
        pickles = " (there are .bin weights, which are not read)" if any(folder.glob("*/*.bin")) else ""
        raise InputError(
            f"the prior in {folder} is missing parts",
            expected="a folder in diffusers format with weights as safetensors",
            got=f"no {', no '.join(missing)}{pickles}",
            hint=REPAIR_HINT,
        )
    contents = {name: read_json(folder / name) for name in configs}
    for files in weights.values():
        for file in files:
            check_weights(file)
    unet, vae = contents["unet/config.json"], contents["vae/config.json"]
    image_conditioned = check_channels(unet.get("in_channels"), vae.get("latent_channels"))
    _check_conditions(folder, unet, image_conditioned)


def vae_factor(folder: Path) -> int:
    """Pixels per latent along each side, from the autoencoder's config in a folder that was checked."""
    return 2 ** (len(read_json(folder / "vae/config.json")["block_out_channels"]) - 1)


def is_image_conditioned(folder: Path) -> bool:
    """Whether a folder that was checked holds an InstructPix2Pix; otherwise it is a text-to-image model."""
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    return check_channels(unet.get("in_channels"), vae.get("latent_channels"))


def is_xl(folder: Path) -> bool:
    """Whether a folder with a U-Net's config holds a Stable Diffusion XL."""
    return read_json(folder / "unet/config.json").get("addition_embed_type") == "text_time"


def check_channels(unet_channels: int | None, latent_channels: int | None) -> bool:
    """Tell by the channels whether a U-Net is shown a picture beside the noisy latents.

    Returns:
        True for twice the latent channels, an InstructPix2Pix; False for as many, a text-to-image model.

    Raises:
        InputError: neither.
    """
    if latent_channels is None or unet_channels not in (latent_channels, 2 * latent_channels):
        raise InputError(
            "the prior is neither an InstructPix2Pix nor a text-to-image model",
            expected="a U-Net with twice as many input channels as the VAE has latent channels (8 and 4), or "
            "as many (4 and 4)",
            got=f"{unet_channels} input channels and {latent_channels} latent channels",
            hint="use timbrooks/instruct-pix2pix, stable-diffusion-v1-5/stable-diffusion-v1-5, a model of "
            "their kind, or the bundled tiny-instruct",
        )
    return unet_channels != latent_channels


def _check_conditions(folder: Path, unet: dict[str, Any], image_conditioned: bool) -> None:
    """Refuse a U-Net that must be told more than a prompt and a size: upscalers, unCLIP, an XL that edits."""
    known = {} if image_conditioned else {"addition_embed_type": "text_time"}
    more = [
        name
        for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
        if unet.get(name) not in (None, known.get(name))
    ]
    if more:
        raise InputError(
            f"the U-Net in {folder} must be told more than a prompt",
            expected="an InstructPix2Pix or Stable Diffusion 1 or 2 with one CLIP text encoder, or a "
            "text-to-image Stable Diffusion XL",
            got=" and ".join(f"{name} {unet[name]!r}" for name in more) + " in its config",
            hint="use another model",
        )


def read_json(file: Path) -> dict[str, Any]:
    """A config file's content.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content = error
    if not isinstance(content, dict):
        raise InputError(
            f"{file} cannot be read", expected="a JSON object", got=f"{content}"[:200], hint=REPAIR_HINT
        )
    return content


def check_weights(file: Path) -> None:
    """See that a safetensors file is whole.

    Raises:
        InputError: it is not.
    """
    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} cannot be read",
            expected="a complete safetensors file",
            got=f"{error} ({file.stat().st_size} bytes)",
            hint=REPAIR_HINT + " (a file of a few hundred bytes is a git-lfs pointer: run `git lfs pull`)",
        ) from error
