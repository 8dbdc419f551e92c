"""Where commands compute."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cuda", "cpu"]


def present_device(device: Device) -> Literal["cuda", "cpu"]:
    """The device that is meant; auto is a CUDA GPU if there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
