"""Whether pictures of one scene agree about the colour of its points: warp one into another and compare.

Everything here is a pure function of pictures, depths and cameras; nothing knows of NeRFs. Camera matrices
are OpenGL's, as in nerfstudio: x right, y up, looking along -z. Depths are along the viewing axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TOLERANCE = 0.03
"""Relative difference of depths up to which two views are taken to see the same point."""


@dataclass(frozen=True)
class PosedPictures:
    """Pictures with the geometry they were drawn from.

    Attributes:
        images: (V, 3, H, W), 0..1.
        depths: (V, H, W) along the viewing axis, in the unit of the camera positions.
        camera_to_worlds: (V, 3, 4).
        intrinsics: (V, 3, 3), in pixels, pixel centres at .5.
    """

    images: Float[Tensor, "v 3 h w"]
    depths: Float[Tensor, "v h w"]
    camera_to_worlds: Float[Tensor, "v 3 4"]
    intrinsics: Float[Tensor, "v 3 3"]


def seen_points(views: PosedPictures) -> Float[Tensor, "v h w 3"]:
    """What the pixels show, in the world of the camera poses."""
    local = _rays(views.depths, views.intrinsics) * views.depths[..., None]
    return torch.stack(
        [_to_world(pose, points) for pose, points in zip(views.camera_to_worlds, local, strict=True)]
    )


def axis_depth(
    distances: Float[Tensor, "v h w"], intrinsics: Float[Tensor, "v 3 3"]
) -> Float[Tensor, "v h w"]:
    """Depth along the viewing axis from Euclidean distance along each pixel's ray.

    Args:
        distances: from the camera's centre.
        intrinsics: in pixels.
    """
    return distances / _rays(distances, intrinsics).norm(dim=-1)


def warp(
    views: PosedPictures, target: int, source: int, tolerance: float = TOLERANCE
) -> tuple[Float[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """The picture of view `source` as seen from view `target`, and where that is known.

    Each pixel p of the target is put at its depth z, `X = R_t (z K_t^-1 p) + c_t`, projected into the
    source view, and takes its colour there (bilinear). Known is where X lies in front of the source camera
    and inside its picture, and the source view's own depth there differs from that of X by at most
    `tolerance` of it: otherwise something else is seen there.

    Args:
        views: pictures and geometry.
        target: number of the view warped into.
        source: number of the view whose colours are taken.
        tolerance: relative.
    """
    height, width = views.depths.shape[1:]
    depth = views.depths[target]
    rays = _rays(views.depths[target : target + 1], views.intrinsics[target : target + 1])[0]
    points = _to_world(views.camera_to_worlds[target], rays * depth[..., None])  # (H, W, 3)
    seen = _from_world(views.camera_to_worlds[source], points)
    ahead = -seen[..., 2]  # depth of X along the source's viewing axis
    safe = ahead.clamp(min=1e-9)
    intrinsics = views.intrinsics[source]
    columns = intrinsics[0, 0] * seen[..., 0] / safe + intrinsics[0, 2]
    rows = intrinsics[1, 2] - intrinsics[1, 1] * seen[..., 1] / safe
    inside = (columns >= 0.5) & (columns <= width - 0.5) & (rows >= 0.5) & (rows <= height - 0.5)
    grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], dim=-1)[None]
    layers = torch.cat([views.images[source], views.depths[source][None]])[None]
    found = F.grid_sample(layers, grid.nan_to_num(-2), align_corners=False)[0]  # (4, H, W)
    same_point = (found[3] - ahead).abs() <= tolerance * ahead
    return found[:3], inside & (ahead > 0) & same_point & depth.isfinite()


@dataclass(frozen=True)
class Reprojection:
    """What was found at some pairs of views.

    Attributes:
        errors: (P) mean absolute difference of colours, 0..1; NaN for a pair without a common point.
        coverage: (P) share of the target's pixels that were compared.
    """

    errors: Float[Tensor, " p"]
    coverage: Float[Tensor, " p"]


def reprojection_error(
    views: PosedPictures, pairs: Sequence[tuple[int, int]], tolerance: float = TOLERANCE
) -> Reprojection:
    """Cross-view reprojection error: how far the colours of common points differ between two views.

    `mean |I_t(p) - I_s(warp(p))|` over the pixels p that `warp` knows and the channels. The idea is the
    warping error of video (Lai et al. 2018, Learning Blind Video Temporal Consistency, section 4.2), with
    the scene's depth in place of optical flow and the absolute difference for the squared one.

    It is 0 for a scene whose colours do not depend on the view, up to the interpolation; what a real scene
    has of it (reflections, errors of the depth) shows in the unedited scene's own figure. An edit that
    lowers contrast or detail lowers it too: see `contrast` and `change_of`.

    Args:
        views: pictures and geometry.
        pairs: (target, source) of each comparison.
        tolerance: of `warp`.
    """
    errors, coverage = [], []
    for target, source in pairs:
        warped, known = warp(views, target, source, tolerance)
        difference = (views.images[target] - warped).abs().mean(0)
        errors.append(difference[known].mean())
        coverage.append(known.float().mean())
    return Reprojection(torch.stack(errors), torch.stack(coverage))


def change_of(before: PosedPictures, after: PosedPictures) -> PosedPictures:
    """What an edit changed in each view: `after - before`, -1..1, with the geometry of the scene before.

    The reprojection error of the change is 0 where all views change a point alike, also on a scene whose
    own colours depend on the view. It compares the same pixels whatever the edit, so that edits of one scene
    can be compared with each other.

    Args:
        before: of the source scene.
        after: of the edit, from the same cameras.
    """
    return dataclasses.replace(before, images=after.images - before.images)


def contrast(images: Float[Tensor, "v 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute deviation of colours from the mean colour of their picture, averaged over pictures.

    A reprojection error divided by it does not change when all pictures become paler or darker together;
    for views that have nothing to do with each other the quotient is around 1.
    """
    return (images - images.mean((2, 3), keepdim=True)).abs().mean()


def _rays(depths: Tensor, intrinsics: Tensor) -> Tensor:
    """Directions (V, H, W, 3) through the pixel centres in camera space, of depth 1."""
    _, height, width = depths.shape
    rows, columns = torch.meshgrid(
        torch.arange(height, device=depths.device) + 0.5,
        torch.arange(width, device=depths.device) + 0.5,
        indexing="ij",
    )
    focal_x, focal_y, middle_x, middle_y = (
        intrinsics[:, row, column, None, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    x, y = (columns - middle_x) / focal_x, (middle_y - rows) / focal_y
    return torch.stack([x, y, -torch.ones_like(x)], dim=-1)


def _to_world(camera_to_world: Tensor, points: Tensor) -> Tensor:
    return points @ camera_to_world[:, :3].T + camera_to_world[:, 3]


def _from_world(camera_to_world: Tensor, points: Tensor) -> Tensor:
    return (points - camera_to_world[:, 3]) @ camera_to_world[:, :3]
