"""Which prompt counts where: bands or masks turned into weights that blend and add up to one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError

SHARES_TOLERANCE = 1e-3
"""Bands whose shares miss one by less are stretched to fit: people write 0.33."""
LEAST_COVER = 1e-3
"""Sum of the masks (0..1) below which a pixel counts as uncovered."""


def band_masks(shares: Sequence[float], height: int, width: int) -> Float[Tensor, "regions height width"]:
    """Vertical bands from left to right.

    Args:
        shares: of the picture's width, above 0, together 1.
        height, width: of the masks.

    Raises:
        InputError: shares that leave pixels uncovered, or that do not fit in the picture.

    Example:
        >>> band_masks([0.25, 0.75], 1, 4)
        tensor([[[1., 0., 0., 0.]],
        <BLANKLINE>
                [[0., 1., 1., 1.]]])
    """
    total = sum(shares)
    if min(shares) <= 0 or abs(total - 1) > SHARES_TOLERANCE:
        lacking = "leave pixels uncovered" if total < 1 else "do not fit in the picture"
        raise InputError(
            f"the bands {lacking}" if min(shares) > 0 else "a band has no width",
            expected="shares of the width above 0 that add up to 1, such as 0.25 0.5 0.25",
            got=" ".join(f"{share:g}" for share in shares) + f", together {total:g}",
            hint="change the shares, or leave them out for bands of equal width",
        )
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0) / total * width
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    left = torch.arange(width, dtype=torch.float64)
    inside = torch.minimum(ends[:, None], left + 1) - torch.maximum(starts[:, None], left)
    return inside.clamp(0, 1).float()[:, None].expand(-1, height, -1)


def region_weights(
    masks: Float[Tensor, "regions height width"], feather: float, *, wrap: bool = False
) -> Float[Tensor, "regions height width"]:
    """Weights of the regions, blended into each other.

    Args:
        masks: how much each region wants each pixel, 0..1; where several do, they share it.
        feather: width of the blend between two regions that meet, in pixels of the masks.
        wrap: whether the right edge continues at the left one.

    Returns:
        Weights that add up to one at every pixel.

    Raises:
        InputError: pixels that no region wants.
    """
    total = masks.sum(0)
    uncovered = total < LEAST_COVER
    if uncovered.any():
        row, column = uncovered.nonzero()[0].tolist()
        height, width = total.shape
        raise InputError(
            "the regions leave pixels uncovered",
            expected="masks that together are white everywhere",
            got=f"{100 * uncovered.float().mean():.1f} % of the picture black in all masks, such as at "
            f"{100 * column / width:.0f} % from the left and {100 * row / height:.0f} % from the top",
            hint="widen the masks, or add a region for the rest with the instruction to keep it as it is",
        )
    weights = masks / total
    radius = min(round(feather / 2), min(total.shape) - 1)
    if radius > 0:
        # Two box blurs make a smooth ramp; each keeps the sum at one.
        weights = _box(_box(weights, (radius + 1) // 2, wrap), radius // 2, wrap)
    return weights / weights.sum(0)


def _box(masks: Tensor, radius: int, wrap: bool) -> Tensor:
    if radius == 0:
        return masks
    around = functional.pad(masks, (radius, radius, 0, 0), mode="circular" if wrap else "replicate")
    around = functional.pad(around, (0, 0, radius, radius), mode="replicate")
    return functional.avg_pool2d(around, 2 * radius + 1, stride=1)
