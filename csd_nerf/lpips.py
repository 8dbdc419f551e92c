"""LPIPS (Zhang et al., 1801.03924) with AlexNet, as torchmetrics computes it."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from csd_nerf.errors import InputError


def load_lpips(device: torch.device | str, *, hint: str) -> Any:
    """torchmetrics' network, frozen: `net(pictures, pictures, normalize=True)` is (n, 1, 1, 1) in 0..1.

    Args:
        device: where it is to run.
        hint: what a user can do without it.

    Raises:
        InputError: AlexNet's weights are neither on this machine nor to be fetched.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        lpips = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            "LPIPS cannot be computed: AlexNet's weights are not on this machine and cannot be fetched",
            expected="torchvision's alexnet-owt-7be5be79.pth in "
            f"{torch.hub.get_dir()}/checkpoints, or network to fetch it",
            got=str(error).strip()[:200],
            hint=hint,
        ) from error
    return lpips.net.eval().requires_grad_(False).to(device)
