"""Whether a prior fits into its device's memory: told from the headers of its files, before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from csd_nerf.errors import check
from csd_nerf.priors.folder import WEIGHTS, find_weights, weights_header
from csd_nerf.priors.quantized import Quantization, weight_bytes

GIGABYTE = 1e9


@dataclass(frozen=True)
class Load:
    """A part of a model that is to be loaded.

    Attributes:
        name: of the part.
        folder: with its weights, as safetensors.
        dtype: precision it is loaded in.
        quantization: of its linear layers.
        as_told: whether both are the prior's own, which are options.
    """

    name: str
    folder: Path
    dtype: torch.dtype
    quantization: Quantization = "none"
    as_told: bool = True


def check_memory(folder: Path, loads: Sequence[Load], device: torch.device) -> None:
    """See that the weights of all parts fit into what a device has free, at one time.

    Text encoders are dropped after use, but are in memory beside the rest while prompts are read. Activations
    come on top, so that what passes may still run out of memory.

    Args:
        folder: the model's, for the message.
        loads: its parts.
        device: where it is to run.

    Raises:
        InputError: they do not.
    """
    sizes = {load.name: loaded_bytes(load) for load in loads}
    free = free_memory(device)
    check(
        sum(sizes.values()) <= free,
        f"the prior in {folder} does not fit into the memory of {device}",
        expected=f"{_gigabytes(sum(sizes.values()))} free for its weights: "
        + ", ".join(f"{_gigabytes(size)} {name}" for name, size in sizes.items()),
        got=f"{_gigabytes(free)} free",
        hint=_what_would_fit(loads, free),
    )


def loaded_bytes(load: Load) -> int:
    """What the weights of a part take once they are loaded; numbers that are no fractions keep their kind."""
    total = 0.0
    for file in weight_files(load.folder):
        for name, tensor in weights_header(file).items():
            start, end = tensor["data_offsets"]
            is_float = tensor["dtype"].startswith(("F", "BF"))
            total += (
                weight_bytes(name, tensor["shape"], load.dtype, load.quantization)
                if is_float
                else end - start
            )
    return round(total)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weights of a part, of diffusers' or of transformers'."""
    return find_weights(folder, WEIGHTS["vae"]).files or find_weights(folder, WEIGHTS["text_encoder"]).files


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has for us: of a GPU also those that torch holds and does not use."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _what_would_fit(loads: Sequence[Load], free: int) -> str:
    choices: list[tuple[str, dict[str, Any]]] = [
        ("--pipeline.prior-precision bfloat16", {"dtype": torch.bfloat16}),
        ("--pipeline.prior-quantization int8", {"dtype": torch.bfloat16, "quantization": "int8"}),
        ("--pipeline.prior-quantization nf4", {"dtype": torch.bfloat16, "quantization": "nf4"}),
    ]
    ways = ["free some", "use another device (--pipeline.prior-device)"]
    for option, changes in choices:
        taken = sum(loaded_bytes(replace(load, **changes) if load.as_told else load) for load in loads)
        if taken <= free:
            ways.insert(0, f"choose {option}, which takes {_gigabytes(taken)}")
            break
    return ", ".join(ways) + f", or a prior whose weights take less than {_gigabytes(free)}: tiny-instruct"


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB"
