"""Do the parts of an edit agree? Windows of a picture, the two ends of a panorama, the frames of a clip.

Pure functions over pictures in 0..1, on the CPU or wherever the tensors are. For whether views agree on a hue
see `hue_deviation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError
from csd_nerf.scenes.operators import circular_deviation, hue_and_chroma

OCCLUSION_SHARE, OCCLUSION_FLOOR = 0.01, 0.5
"""Of the forward-backward check: relative (to the squared lengths) and absolute (in squared pixels)."""

BOUNDARY_SHARE, BOUNDARY_FLOOR = 0.01, 0.002
"""Of the check for motion boundaries, likewise."""


def overlap_disagreement(
    windows: Float[Tensor, "n 3 h w"], starts: list[tuple[int, int]], height: int, width: int
) -> float:
    """How differently windows that were decoded separately show the pixels that they share.

    For each pixel that several windows hold, the standard deviation over those windows, root mean square over
    such pixels and the channels:

        sqrt( mean over p, c of 1/n_p sum_i (x_i(p, c) - mean_i x_i(p, c))^2 ),   p in two windows or more

    0 says that the windows fit together without blending. A plain measure of our own.

    Args:
        windows: RGB in 0..1.
        starts: row and column of each window's first pixel. Windows may run over the right edge and go on at
            the left one.
        height, width: of the whole picture.

    Raises:
        InputError: no two windows share a pixel.

    Example:
        >>> overlap_disagreement(torch.full((2, 3, 4, 4), 0.5), [(0, 0), (0, 2)], 4, 6)
        0.0
    """
    rows, columns = windows.shape[2:]
    count = torch.zeros(height, width, dtype=torch.float64)
    total, squares = (torch.zeros(3, height, width, dtype=torch.float64) for _ in range(2))
    for window, (top, left) in zip(windows.double().cpu(), starts, strict=True):
        place = (torch.arange(top, top + rows)[:, None], torch.arange(left, left + columns) % width)
        count[place] += 1
        total[:, place[0], place[1]] += window
        squares[:, place[0], place[1]] += window.square()
    shared = count > 1
    if not shared.any():
        raise InputError(
            "no two windows share a pixel",
            expected="windows that overlap",
            got=f"{len(windows)} windows of {rows} x {columns} pixels",
            hint="place them closer",
        )
    variance = squares / count.clamp(min=1) - (total / count.clamp(min=1)).square()
    return variance[:, shared].clamp(min=0).mean().sqrt().item()


def seam_error(panorama: Float[Tensor, "3 h w"], *, block: int = 1) -> tuple[float, float]:
    """How the left and right edge of a full turn differ, and how neighbouring columns elsewhere do.

    Both are mean absolute differences over rows and channels, of columns 0 and W - 1, and of all columns and
    their right neighbours. A panorama without a visible seam has the first no larger than the second. A plain
    measure of our own.

    Autoencoders that enlarge by repeating columns differ less within a block of one origin than from block to
    block, and a seam always lies between two blocks. With `block`, only such columns are compared elsewhere.

    Args:
        panorama: RGB in 0..1; its right edge continues at the left one.
        block: columns that the autoencoder makes of one, its factor; 1 takes all columns.

    Example:
        >>> ramp = torch.arange(8).div(8).expand(3, 4, 8)
        >>> seam_error(ramp)
        (0.875, 0.125)
    """
    seam = (panorama[:, :, 0] - panorama[:, :, -1]).abs().mean().item()
    return seam, panorama.diff(dim=2)[:, :, block - 1 :: block].abs().mean().item()


def hue_deviation(pictures: Float[Tensor, "n 3 h w"]) -> float:
    """How far the mean hues of pictures lie apart: circular standard deviation in degrees.

    See `csd_nerf.scenes.operators.hue_and_chroma` and `circular_deviation`.
    """
    return circular_deviation(hue_and_chroma(pictures)[0])


@dataclass(frozen=True)
class Motion:
    """How one frame becomes the next.

    Args:
        flow: for each pixel of the later frame, where it was in the earlier one: offset (x, y) in pixels.
        visible: pixels of the later frame whose motion is known: seen in both, not at a motion's border.
    """

    flow: Float[Tensor, "2 h w"]
    visible: Bool[Tensor, "h w"]


def motion(earlier: Float[Tensor, "3 h w"], later: Float[Tensor, "3 h w"]) -> Motion:
    """Optical flow from a frame back to the one before, by Dense Inverse Search (Kroeger et al., 1603.03590).

    Pixels are left out as in Lai et al. (1808.00449), after Ruder et al. (1604.08610), where
    `b` is the flow from the later to the earlier frame, and `f` the one from the earlier to the later as seen
    at `b`'s end: a pixel is not seen before where

        |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5

    and lies at the border of a motion where `|grad b_x|^2 + |grad b_y|^2 > 0.01 |b|^2 + 0.002`. Pixels whose
    origin lies outside of the earlier frame are left out as well.

    Args:
        earlier, later: consecutive frames of the *source*, RGB in 0..1, at least 16 pixels a side.
    """
    back, forth = _dense_flow(later, earlier), _dense_flow(earlier, later)
    met, inside = _warp(forth, back)
    lengths = met.square().sum(0) + back.square().sum(0)
    occluded = (met + back).square().sum(0) > OCCLUSION_SHARE * lengths + OCCLUSION_FLOOR
    down, right = torch.gradient(back, dim=(1, 2))
    steep = down.square().sum(0) + right.square().sum(0)
    border = steep > BOUNDARY_SHARE * back.square().sum(0) + BOUNDARY_FLOOR
    return Motion(back, inside & ~occluded & ~border)


def motions(source: Iterable[Float[Tensor, "3 h w"]]) -> Iterator[Motion]:
    """The motion between all consecutive frames, holding two frames at a time."""
    earlier = None
    for later in source:
        if earlier is not None:
            yield motion(earlier, later)
        earlier = later


def warp_error(frames: Iterable[Float[Tensor, "3 h w"]], along: Iterable[Motion]) -> float:
    """How much a clip flickers along the motion of its source: the warping error of Lai et al. (1808.00449).

    With `V_t` a frame, `V^_(t-1)` the one before, brought to its place along the flow of the source, and
    `M_t` the visible pixels:

        E = 1 / (T - 1) sum_t  1 / |M_t| sum_{p in M_t} |V_t(p) - V^_(t-1)(p)|^2

    where the square is summed over the three channels. 0 is a clip whose every point keeps its colour. The
    source itself is not 0, for shadows, noise and errors of the flow: give its value beside an edit's.

    Args:
        frames: of the edit, RGB in 0..1, of the size at which the motion was found.
        along: `motions` of the source.

    Raises:
        InputError: a single frame, which moves nowhere, or another number of frames than the source has.
    """
    errors: list[float] = []
    earlier = None
    along = iter(along)
    for later in frames:
        if earlier is not None:
            step = next(along, None)
            if step is None:
                raise _frame_count(f"more than {len(errors) + 1} frames")
            if step.visible.any():  # nothing can be said of a cut
                warped, _ = _warp(earlier, step.flow)
                errors.append((later - warped).square().sum(0)[step.visible].mean().item())
        earlier = later
    if next(along, None) is not None or not errors:
        raise _frame_count("fewer frames than the source, or one")
    return float(np.mean(errors))


def _dense_flow(start: Float[Tensor, "3 h w"], end: Float[Tensor, "3 h w"]) -> Float[Tensor, "2 h w"]:
    """Where each pixel of `start` is in `end`, as offset (x, y)."""
    import cv2

    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [
        cv2.cvtColor(
            (frame.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy(), cv2.COLOR_RGB2GRAY
        )
        for frame in (start, end)
    ]
    flow = search.calc(grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32))
    return torch.from_numpy(flow).permute(2, 0, 1).to(start.device)


def _warp(
    picture: Float[Tensor, "c h w"], flow: Float[Tensor, "2 h w"]
) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"]]:
    """The picture looked up at `p + flow(p)`, and where that lies inside of it."""
    height, width = flow.shape[1:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    x, y = columns + flow[0], rows + flow[1]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    warped = functional.grid_sample(
        picture[None], grid[None].to(picture), padding_mode="border", align_corners=True
    )[0]
    return warped, (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _frame_count(got: str) -> InputError:
    return InputError(
        "the clips cannot be compared frame by frame",
        expected="as many frames as the source has, two at least",
        got=got,
        hint="compare a clip with the one it was made from",
    )
