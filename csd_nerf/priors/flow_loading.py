"""Loading a prior of flow matching from its folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csd_nerf.errors import check
from csd_nerf.priors.base import Prior
from csd_nerf.priors.folder import SECOND_TEXT_ENCODER, guided_by, read_json
from csd_nerf.priors.parts import TextPart, load_text_models, load_weights, place

_TEXT_PARTS = {
    "FluxKontextPipeline": (
        TextPart("tokenizer", "CLIPTokenizer", "text_encoder", "CLIPTextModel"),
        TextPart("tokenizer_2", "T5TokenizerFast", SECOND_TEXT_ENCODER, "T5EncoderModel"),
    ),
    "Flux2KleinPipeline": (TextPart("tokenizer", "Qwen2TokenizerFast", "text_encoder", "Qwen3ForCausalLM"),),
}


def load_flow(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    unet_batch_size: int,
    vae_batch_size: int,
    compiled: bool,
) -> Prior:
    """The prior in a folder that was checked and holds one of `FLOW_PIPELINES`.

    Args:
        folder: the model's.
        device: where it is to run.
        dtype: precision of the transformer and of the text encoders.
        vae_dtype: precision of the VAE.
        unet_batch_size, vae_batch_size: most rows, pictures, at once.
        compiled: compile the transformer with torch.compile.

    Raises:
        InputError: a part cannot be read, or this diffusers does not know its class.
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
    kind: Callable[..., Prior]
    if pipeline == "FluxKontextPipeline":
        from csd_nerf.priors.flux_kontext import FluxKontext as kind
    else:
        from csd_nerf.priors.flux2_klein import Flux2Klein as kind
    transformer, vae = (
        getattr(diffusers, read_json(folder / part / "config.json")["_class_name"])
        for part in ("transformer", "vae")
    )
    return kind(
        transformer=place(load_weights(transformer, folder / "transformer", dtype), device, compiled),
        vae=place(load_weights(vae, folder / "vae", vae_dtype), device, compiled=False),
        load_text=partial(load_text_models, folder, _TEXT_PARTS[pipeline], dtype),
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
        return float(scheduler.get("shift", 1.0))
    if pipeline == "FluxKontextPipeline":
        return math.exp(scheduler.get("max_shift", 1.15))  # reached at 64 x 64 tokens
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    from csd_nerf.priors.flow_transformer import NATIVE_TOKENS

    return math.exp(compute_empirical_mu(NATIVE_TOKENS**2, _USUAL_STEPS))


_USUAL_STEPS = 50
"""Of klein's pipeline."""
