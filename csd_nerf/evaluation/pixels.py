"""Distances between pictures of the same view: PSNR, SSIM and LPIPS, as torchmetrics has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from csd_nerf.errors import InputError
from csd_nerf.evaluation.weights import Unavailable

Images = Float[Tensor, "views 3 height width"]
PerView = Float[Tensor, " views"]

LPIPS_NETWORK = "LPIPS v0.1, AlexNet (torchmetrics)"
"""The network behind `load_lpips`, for reports."""

MOST_DECIBELS = 100.0
"""PSNR of equal pictures, which would be infinite."""


def psnr(images: Images, reference: Images) -> PerView:
    """Peak signal-to-noise ratio `-10 log10 mean((images - reference)^2)` of each view, in dB, at most 100.

    Args:
        images: 0..1.
        reference: 0..1.

    >>> psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round().item()
    20.0
    """
    decibels = peak_signal_noise_ratio(images, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return decibels.clamp(max=MOST_DECIBELS)


def ssim(images: Images, reference: Images) -> PerView:
    """Structural similarity of each view, at most 1 (Wang et al. 2004, equation 13).

    `(2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))`, with means, variances and
    covariance in an 11-pixel Gaussian window of 1.5 pixels, `c1 = 0.01^2`, `c2 = 0.03^2`, averaged over
    pixels and channels.

    Args:
        images: 0..1, at least 11 pixels wide and high.
        reference: 0..1.
    """
    similarity = structural_similarity_index_measure(
        images.double(), reference.double(), data_range=1.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)  # a pair only where the map is asked for
    return similarity.reshape(len(images)).float()


@torch.no_grad()
def lpips(network: Any, images: Images, reference: Images) -> PerView:
    """Learned perceptual distance of each view, 0 for equal pictures (Zhang et al. 2018, equation 1).

    `sum_l mean_hw |w_l (y_l - y0_l)|^2` over the unit-normalised features y of five layers.

    Args:
        network: of `load_lpips`.
        images: 0..1.
        reference: 0..1.
    """
    device = next(network.parameters()).device
    pairs = zip(images.to(device).split(1), reference.to(device).split(1), strict=True)
    distances = [network(image.clamp(0, 1), other.clamp(0, 1), normalize=True) for image, other in pairs]
    return torch.cat(distances).flatten().to(images.device)


def load_lpips(device: torch.device | str, *, download: bool) -> Any:
    """The network that `csd_nerf.lpips` loads, if it is there.

    Args:
        device: where it runs.
        download: fetch torchvision's AlexNet (233 MB) when it is not on this machine.

    Raises:
        Unavailable: when the weights are not there, or cannot be fetched or read.
    """
    from torchvision.models import AlexNet_Weights

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name
    hint = f"pass --download, or put torchvision's file at {file}"
    if not file.exists() and not download:
        raise Unavailable(f"no AlexNet weights on this machine ({file.name})", hint)
    from csd_nerf.lpips import load_lpips as load

    try:
        return load(device, hint=hint)
    except InputError as error:
        raise Unavailable(f"AlexNet's weights cannot be read ({error.got[:90]})", hint) from error
