"""Loading a prior of flow matching from its folder."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csd_nerf.errors import check
from csd_nerf.priors.base import Prior
from csd_nerf.priors.folder import NATIVE_TOKENS, SECOND_TEXT_ENCODER, guided_by, read_json
from csd_nerf.priors.memory import Load, check_memory
from csd_nerf.priors.parts import TextPart, load_text_models, load_weights, place, place_autoencoder
from csd_nerf.priors.quantized import Quantization

_VISION_AND_LANGUAGE = ("Qwen2VLProcessor", "text_encoder", "Qwen2_5_VLForConditionalGeneration")
_TEXT_PARTS: dict[str, tuple[TextPart, ...]] = {
    "FluxKontextPipeline": (
        TextPart("tokenizer", "CLIPTokenizer", "text_encoder", "CLIPTextModel"),
        TextPart("tokenizer_2", "T5TokenizerFast", SECOND_TEXT_ENCODER, "T5EncoderModel"),
    ),
    "Flux2KleinPipeline": (TextPart("tokenizer", "Qwen2TokenizerFast", "text_encoder", "Qwen3ForCausalLM"),),
    "QwenImageEditPlusPipeline": (TextPart("processor", *_VISION_AND_LANGUAGE),),
    "LongCatImageEditPipeline": (TextPart("text_processor", *_VISION_AND_LANGUAGE),),
    "WanPipeline": (TextPart("tokenizer", "T5TokenizerFast", "text_encoder", "UMT5EncoderModel"),),
}
_TEXT_PARTS |= {
    "FluxPipeline": _TEXT_PARTS["FluxKontextPipeline"],
    "LucyEditPipeline": _TEXT_PARTS["WanPipeline"],
    "Flux2KleinKVPipeline": _TEXT_PARTS["Flux2KleinPipeline"],
}
_CLASSES = {
    "FluxKontextPipeline": ("flux_kontext", "FluxKontext"),
    "FluxPipeline": ("flux", "Flux"),
    "Flux2KleinPipeline": ("flux2_klein", "Flux2Klein"),
    "Flux2KleinKVPipeline": ("flux2_klein_kv", "Flux2KleinKV"),
    "QwenImageEditPlusPipeline": ("qwen_image_edit", "QwenImageEdit"),
    "LongCatImageEditPipeline": ("longcat_image_edit", "LongCatImageEdit"),
    "WanPipeline": ("wan", "Wan"),
    "LucyEditPipeline": ("wan", "LucyEdit"),
}
"""Module and name of the prior of each pipeline; each needs another part of diffusers."""


def load_flow(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    unet_batch_size: int,
    vae_batch_size: int,
    compiled: bool,
    quantization: Quantization,
) -> Prior:
    """The prior in a folder that was checked and holds one of `FLOW_PIPELINES`.

    Args:
        folder: the model's.
        device: where it is to run.
        dtype: precision of the transformer and of the text encoders.
        vae_dtype: precision of the VAE.
        unet_batch_size, vae_batch_size: most rows, pictures, at once.
        compiled: compile the transformer with torch.compile.
        quantization: of the transformer's and the text encoders' linear layers.

    Raises:
        InputError: a part cannot be read, this diffusers does not know its class, or the device has too
            little memory free for the weights.
    """
    import diffusers

    pipeline = read_json(folder / "model_index.json")["_class_name"]
    check(
        hasattr(diffusers, pipeline),
        f"diffusers {diffusers.__version__} does not know the prior in {folder}",
        expected=f"a diffusers with {pipeline}",
        got="an older one",
        hint="pip install --upgrade diffusers",
    )
    text_parts = _TEXT_PARTS[pipeline]
    check_memory(
        folder,
        [
            Load("transformer", folder / "transformer", dtype, quantization),
            Load("vae", folder / "vae", vae_dtype, as_told=False),
            *(Load(part.encoder, folder / part.encoder, dtype, quantization) for part in text_parts),
        ],
        device,
    )
    module, name = _CLASSES[pipeline]
    kind: Callable[..., Prior] = getattr(importlib.import_module(f"csd_nerf.priors.{module}"), name)
    transformer, vae = (
        getattr(diffusers, read_json(folder / part / "config.json")["_class_name"])
        for part in ("transformer", "vae")
    )
    return kind(
        transformer=place(
            load_weights(transformer, folder / "transformer", dtype), device, compiled, quantization
        ),
        vae=place_autoencoder(load_weights(vae, folder / "vae", vae_dtype), device),
        load_text=partial(load_text_models, folder, text_parts, dtype, quantization),
        guided_by=guided_by(folder),
        time_shift=time_shift(pipeline, read_json(folder / "scheduler/scheduler_config.json")),
        unet_batch_size=unet_batch_size,
        vae_batch_size=vae_batch_size,
    )


def time_shift(pipeline: str, scheduler: dict[str, Any]) -> float:
    """How a pipeline's sampler spaces its steps at the model's own size (`Prior.time_shift`).

    Args:
        pipeline: its class.
        scheduler: config of its scheduler.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", scheduler.get("flow_shift", 1.0)))
    if not pipeline.startswith("Flux2Klein"):
        fewest, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        return math.exp(low + (high - low) * (NATIVE_TOKENS**2 - fewest) / (most - fewest))
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return math.exp(compute_empirical_mu(NATIVE_TOKENS**2, _USUAL_STEPS))


_USUAL_STEPS = 50
"""Of klein's pipeline."""
