"""Weights of fewer bits, by bitsandbytes (Dettmers et al., 2208.07339 and 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import nn

from csd_nerf.errors import check

Quantization = Literal["none", "int8", "nf4"]
KEPT = (
    "lm_head",
    "embed_tokens",
    "token_embedding",
    "position_embedding",
    "shared",
    "relative_attention_bias",
)
"""Of language models, what stays as it is: tables that words are looked up in, and what is not asked."""
BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64}
"""Of a weight; nf4 has a number of one byte for each 64 of them besides."""


def check_quantization(quantization: Quantization) -> None:
    """See that what quantises weights is there, where it is asked for.

    Raises:
        InputError: it is not.
    """
    check(
        quantization == "none" or importlib.util.find_spec("bitsandbytes") is not None,
        f"weights cannot be brought to {quantization}",
        expected="the package bitsandbytes",
        got="no such package",
        hint="pip install 'csd-nerf[quantized]', or leave out --pipeline.prior-quantization",
    )


def quantized(model: Any, quantization: Quantization) -> Any:
    """A model on the CPU whose linear layers take fewer bits once it is moved to where it is to run.

    The layers are replaced in place. What they compute, and gradients through them, stay in the model's
    precision; their own weights have none.

    Args:
        model: of any library, in its precision.
        quantization: "int8", or "nf4" for 4 bits; "none" leaves the model as it is.
    """
    if quantization == "none":
        return model
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and name not in KEPT:
                setattr(parent, name, _eight_bits(layer) if quantization == "int8" else _four_bits(layer))
    return model


def _eight_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    made = bitsandbytes.nn.Linear8bitLt(
        layer.in_features, layer.out_features, device="meta", has_fp16_weights=False
    )
    made.weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made


def _four_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    made = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        device="meta",
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )
    # Its form for CPUs is not for all sizes, and has no gradients.
    made.support_avx512bf16_for_cpu = False
    made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    return made


def weight_bytes(name: str, shape: list[int], dtype: torch.dtype, quantization: Quantization) -> float:
    """What a tensor of a model takes once it is loaded and quantised.

    Args:
        name: in the model.
        shape: of it.
        dtype: the model's precision.
        quantization: of its linear layers.
    """
    count = torch.Size(shape).numel()
    linear = (
        len(shape) == 2 and name.endswith(".weight") and not any(part in KEPT for part in name.split("."))
    )
    return count * (BYTES[quantization] if linear and quantization != "none" else dtype.itemsize)
