"""Loading the parts of a model in diffusers format, each from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csd_nerf.errors import InputError
from csd_nerf.priors.base import memory_format
from csd_nerf.priors.folder import REPAIR_HINT, WEIGHTS, find_weights
from csd_nerf.priors.quantized import Quantization, quantized


def place(model: Any, device: torch.device, compiled: bool, quantization: Quantization = "none") -> Any:
    """A denoiser where it is to run, in the form that is fast there, and with weights of so many bits."""
    model = _in_form(quantized(model, quantization), memory_format(device))
    if compiled:
        model.compile()
    return model.to(device)


def place_autoencoder(model: Any, device: torch.device) -> Any:
    """An autoencoder where it is to run, in the form that is fast there."""
    return _in_form(model, memory_format(device, of="autoencoder")).to(device)


def _in_form(model: Any, form: torch.memory_format) -> Any:
    clips = any(weight.ndim == 5 for weight in model.parameters())  # they know no other form
    return model if clips else model.to(memory_format=form)


def load_weights(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model in a folder of its own; weights that do not fit its config are bad input."""
    variant = find_weights(folder, WEIGHTS["vae"]).variant
    try:
        loaded, found = model.from_pretrained(
            folder, variant=variant, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        _check_whole(found)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the {model.__name__} in {folder} cannot be loaded",
            expected="weights that fit its config.json",
            got=str(error).strip()[:300],
            hint=REPAIR_HINT,
        ) from error
    return loaded


def _check_whole(found: dict[str, Any]) -> None:
    """Refuse what diffusers and transformers fill up with random numbers.

    Raises:
        ValueError: weights are missing.
    """
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing: {', '.join(missing[:3])}")


@dataclass(frozen=True)
class TextPart:
    """A tokenizer and its text encoder: their folders, and their classes in transformers."""

    tokenizer: str
    tokenizer_class: str
    encoder: str
    encoder_class: str


def load_text_models(
    folder: Path,
    parts: Sequence[TextPart],
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders of a model, in pairs.

    Args:
        folder: the model's, checked.
        parts: what is in it.
        dtype: precision of the encoders.
        quantization: of their linear layers, once they are moved.

    Raises:
        InputError: one cannot be read, or its weights do not fit its config.
    """
    import transformers

    try:
        models = []
        for part in parts:
            encoder, found = getattr(transformers, part.encoder_class).from_pretrained(
                folder / part.encoder,
                variant=find_weights(folder / part.encoder, WEIGHTS["text_encoder"]).variant,
                torch_dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_whole(found)
            tokenizer = getattr(transformers, part.tokenizer_class).from_pretrained(
                folder, subfolder=part.tokenizer
            )
            models.append((tokenizer, quantized(encoder, quantization)))
        return models
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the tokenizer or text encoder in {folder} cannot be loaded",
            expected=" and ".join(f"{part.tokenizer_class} and {part.encoder_class}" for part in parts)
            + ", with weights that fit the config",
            got=str(error).strip()[:300],
            hint=REPAIR_HINT,
        ) from error
