"""Which prompt counts where: bands or masks turned into weights that blend and add up to one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError, check

SHARES_TOLERANCE = 0.015
"""Bands whose shares miss one by less are stretched to fit: people write 0.33."""
LEAST_COVER = 1e-3
"""Sum of the masks (0..1) below which a pixel counts as uncovered."""


def check_count(prompts: Sequence[str], regions: int, kind: str) -> None:
    """See that every prompt has its region.

    Raises:
        InputError: it does not.
    """
    check(
        len(prompts) == regions,
        f"prompts and {kind} differ in number",
        expected=f"one of the {kind} for each prompt",
        got=f"{len(prompts)} prompts and {regions} {kind}",
        hint=f"give as many {kind} as prompts; without any, prompts get bands of equal width",
    )


def check_shares(shares: Sequence[float]) -> None:
    """See that bands cover a picture.

    Args:
        shares: of the picture's width, from left to right.

    Raises:
        InputError: a band without width, bands that leave pixels uncovered, or that do not fit.
    """
    total = sum(shares)
    if min(shares) > 0 and abs(total - 1) <= SHARES_TOLERANCE:
        return
    if min(shares) <= 0:
        problem = "a band has no width"
    else:
        problem = "the bands leave pixels uncovered" if total < 1 else "the bands do not fit in the picture"
    raise InputError(
        problem,
        expected="shares of the width above 0 that add up to 1, such as 0.25 0.5 0.25",
        got=" ".join(f"{share:g}" for share in shares) + f", together {total:g}",
        hint="change the shares, or leave them out for bands of equal width",
    )


def check_masks(masks: Sequence[Float[Tensor, "_ _"]], height: int, width: int) -> None:
    """See that masks cover a picture.

    Args:
        masks: how much each region wants each pixel, 0..1.
        height, width: of the picture.

    Raises:
        InputError: a mask of another size, pixels that no mask wants.
    """
    total = torch.zeros(height, width)
    for number, mask in enumerate(masks, start=1):
        if mask.shape != total.shape:
            raise InputError(
                f"mask {number} is not of the picture's size",
                expected=f"{width} x {height} pixels",
                got=f"{mask.shape[1]} x {mask.shape[0]} pixels",
                hint="scale the mask to the picture",
            )
        total += mask.cpu()
    uncovered = total < LEAST_COVER
    if uncovered.any():
        row, column = uncovered.nonzero()[0].tolist()
        raise InputError(
            "the masks leave pixels uncovered",
            expected="every pixel white in one mask at least",
            got=f"{100 * uncovered.float().mean():.1f} % of the picture black in all of them, such as the "
            f"pixel {column} from the left and {row} from the top",
            hint="widen the masks, or add one for the rest with an instruction to keep it as it is",
        )


def bands(shares: Sequence[float], height: int, width: int) -> Float[Tensor, "regions height width"]:
    """Masks of vertical bands from left to right; a column that two bands share belongs to both in part.

    Args:
        shares: of the width, see `check_shares`.
        height, width: of the masks.

    Example:
        >>> bands([0.25, 0.75], 1, 4)[0]
        tensor([[1., 0., 0., 0.]])
    """
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0) / sum(shares) * width
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    left = torch.arange(width, dtype=torch.float64)
    inside = torch.minimum(ends[:, None], left + 1) - torch.maximum(starts[:, None], left)
    return inside.clamp(0, 1).float()[:, None].expand(-1, height, -1)


def blended(
    masks: Float[Tensor, "regions height width"], feather: float, *, wrap: bool = False
) -> Float[Tensor, "regions height width"]:
    """Weights of regions that fade into each other.

    Args:
        masks: how much each region wants each pixel, not 0 in all of them; where several do, they share it.
        feather: width of the fade between two regions that meet, in pixels of the masks.
        wrap: whether the right edge continues at the left one.

    Returns:
        Weights that add up to one at every pixel.
    """
    weights = masks / masks.sum(0)
    radius = min(round(feather / 2), min(masks.shape[1:]) - 1)
    # Two box blurs in a row make a smooth ramp, and each leaves the sum at one.
    for part in ((radius + 1) // 2, radius // 2):
        if part > 0:
            sides = functional.pad(weights, (part, part, 0, 0), mode="circular" if wrap else "replicate")
            weights = functional.avg_pool2d(
                functional.pad(sides, (0, 0, part, part), mode="replicate"), 2 * part + 1, stride=1
            )
    return weights / weights.sum(0)
