"""The pictures that ControlNets are trained with, made from a source view."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

CANNY_THRESHOLDS = (100, 200)
"""Of 8-bit gradients, as in diffusers' examples and the preprocessing of the published ControlNets."""
_DEPTH_QUANTILES = (0.01, 0.99)
"""Nearness that becomes black and white. A captured scene has stray density in front of cameras; were the
nearest pixel white, a single one would leave the rest of the picture black."""


def depth_picture(depth: Float[Tensor, "n 1 height width"]) -> Float[Tensor, "n 1 height width"]:
    """Depth as depth ControlNets expect it: inverse, stretched to 0..1 in each picture, near is bright.

    The ends are the 1st and 99th percentiles of nearness; what lies beyond is clamped.

    Args:
        depth: distance along the viewing axis, above 0, in any unit; infinite where there is nothing.

    Returns:
        Grey pictures; black where all is at one distance.

    Example:
        >>> depth_picture(torch.tensor([1.0, 2.0, torch.inf]).view(1, 1, 1, 3).repeat(1, 1, 100, 1))[0, 0, 0]
        tensor([1.0000, 0.5000, 0.0000])
    """
    nearness = 1 / depth.float().clamp_min(torch.finfo(torch.float32).tiny)
    ends = torch.tensor(_DEPTH_QUANTILES, device=depth.device)
    low, high = nearness.flatten(1).quantile(ends, dim=1)[..., None, None, None]  # (N, 1, 1, 1) each
    span = high - low
    return torch.where(span > 0, (nearness - low) / span, 0.0).clamp(0, 1)


def canny_picture(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 1 height width"]:
    """Edges as canny ControlNets expect them: white lines on black, by OpenCV at the usual thresholds.

    Args:
        images: RGB in 0..1.
    """
    import cv2

    edges = []
    for image in images:
        pixels = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()
        edges.append(torch.from_numpy(cv2.Canny(pixels, *CANNY_THRESHOLDS)))
    return torch.stack(edges)[:, None].to(images.device) / 255.0
