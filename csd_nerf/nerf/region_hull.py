"""The volume that masks of many views have in common: their visual hull."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.nerf.region_voxels import Voxels, grown

RESOLUTION = 128
"""Voxels along each edge of the grid."""
COARSE_RESOLUTION = 64
"""The same for the grids in which the hull is looked for."""
COARSE_CELLS = (16, 32, 64)
"""Cells of a mask, along each side, in the first look, the second and the third."""
AGREEING = 0.95
"""Share of the views that see a voxel which must show it white: one mask in twenty may be wrong."""
SEEING = 0.25
"""Share of the views that must have a voxel in their frame. Close to a camera, and far behind the thing,
there are places which a few views alone see, all of them through its mask."""

Read = Callable[[int], Tensor]
"""From a view to its mask (H, W), 0..1, white where the region is."""


class Hull(Voxels):
    """Voxels that project into the white of (nearly) all masks of the views that see them."""

    @torch.no_grad()
    def carve(self, cameras: Cameras, read: Read, views: Sequence[int], reach: float) -> None:
        """Make the hull.

        First in a coarse grid over all of the scene, then in grids around what each left. Coarse masks,
        widened by more than a voxel, go with the coarse grids, lest something thin is lost between two of
        their points.

        Args:
            cameras: (N), as they were trained with, perspective or fisheye.
            read: gives the masks, of the cameras' size.
            views: those whose masks count, from the most different to the most alike for speed.
            reach: half the edge, in scene units, of the cube around the origin in which the region lies.

        Raises:
            InputError: when no voxel is left, or for other cameras.
        """

        def widened(view: int, cells: int) -> Tensor:
            coarse = F.adaptive_max_pool2d((read(view) >= 0.5).float()[None], cells)
            return F.max_pool2d(coarse, 3, stride=1, padding=1)[0]

        looks: list[tuple[int, Read]] = [
            (COARSE_RESOLUTION, partial(widened, cells=cells)) for cells in COARSE_CELLS
        ]
        bounds = torch.tensor([[-reach] * 3, [reach] * 3])
        for resolution, masks in (*looks, (RESOLUTION, read)):
            occupied = _carved(bounds, resolution, cameras, masks, views)
            if not occupied.any():
                raise InputError(
                    "the masks have no volume in common",
                    expected="white on the same thing in the scene in nearly all masks",
                    got=f"no place that {AGREEING:.0%} of the views which see it show white",
                    hint="see that each mask belongs to its photo and marks the same thing, or give a box: "
                    "--pipeline.region.source box",
                )
            # A surface is a layer in a field, not a sheet, and a mask ends in the middle of it.
            self.occupied, self.bounds = grown(occupied), bounds
            bounds = _bounds_of(self.occupied, bounds)


def project(
    cameras: Cameras, view: int, positions: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Where a view shows positions: the inverse of nerfstudio's `Cameras.generate_rays`.

    Args:
        cameras: perspective or fisheye, with or without OpenCV's radial and tangential distortion.
        view: which of them.
        positions: in scene coordinates.

    Returns:
        Columns and rows in pixels, from the corner of the picture, and which positions are in the picture.
        The numbers of the others mean nothing.
    """
    to_world = cameras.camera_to_worlds[view]
    local = (positions - to_world[:, 3]) @ to_world[:, :3]  # OpenGL: x right, y up, looking along -z
    x, y, ahead = local[:, 0], -local[:, 1], -local[:, 2]
    if cameras.camera_type[view] == CameraType.FISHEYE.value:
        across = torch.hypot(x, y).clamp(min=1e-9)
        scale = torch.atan2(across, ahead) / across
        visible = torch.ones_like(ahead, dtype=torch.bool)
    else:
        visible = ahead > 1e-6
        scale = 1 / ahead.clamp(min=1e-6)
    points = torch.stack([x, y], -1) * scale[:, None]
    size = torch.cat([cameras.width[view], cameras.height[view]]).to(positions)
    focal = torch.cat([cameras.fx[view], cameras.fy[view]])
    middle = torch.cat([cameras.cx[view], cameras.cy[view]])
    distortion = None if cameras.distortion_params is None else cameras.distortion_params[view]
    if distortion is not None and distortion.any():
        # Far outside the picture the polynomials turn back into it: nothing beyond its corners is seen.
        corners = (size * size.new_tensor([[0, 0], [0, 1], [1, 0], [1, 1]]) - middle) / focal
        farthest = radial_and_tangential_undistort(corners, distortion.expand(4, 6)).norm(dim=-1).max()
        visible &= points.norm(dim=-1) <= farthest
        points = _distorted(points, distortion)
    pixels = points * focal + middle
    return pixels, visible & (pixels >= 0).all(-1) & (pixels < size).all(-1)


def check_camera_types(cameras: Cameras) -> None:
    """See that `project` knows the cameras.

    Raises:
        InputError: when it does not.
    """
    known = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)
    others = {CameraType(kind) for kind in cameras.camera_type.unique().tolist() if kind not in known}
    if others:
        raise InputError(
            "masks cannot say where to edit with these cameras",
            expected="perspective or fisheye cameras",
            got=", ".join(kind.name.lower() for kind in others),
            hint="give a box: --pipeline.region.source box",
        )


def _carved(
    bounds: Tensor, resolution: int, cameras: Cameras, read: Read, views: Sequence[int]
) -> Bool[Tensor, "x y z"]:
    """Which voxels, `resolution` along each edge between the bounds, are in the hull."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    centers = bounds[0] + centers * (bounds[1] - bounds[0])
    # Voxels that could still be in the hull: few of all, after a few views.
    left = torch.arange(len(centers))
    seen, black = torch.zeros(2, len(centers), dtype=torch.int16)
    for view in views:
        white = read(view) >= 0.5
        size = white.new_tensor(white.shape, dtype=torch.float32).flip(0)
        pixels, visible = project(cameras, view, centers[left])
        scale = size / torch.cat([cameras.width[view], cameras.height[view]])
        column, row = (pixels * scale).nan_to_num().long().unbind(-1)
        column, row = column.clamp(0, white.shape[1] - 1), row.clamp(0, white.shape[0] - 1)
        seen[left] += visible
        black[left] += visible & ~white[row, column]
        left = left[black[left] <= (1 - AGREEING) * len(views)]
    enough = (seen >= max(1, SEEING * len(views))) & (black <= (1 - AGREEING) * seen)
    inside = torch.zeros(len(centers), dtype=torch.bool)
    inside[left] = enough[left]
    return inside.view((resolution,) * 3)


def _bounds_of(occupied: Bool[Tensor, "x y z"], bounds: Float[Tensor, "2 3"]) -> Float[Tensor, "2 3"]:
    """Corners of the occupied part of the grid between `bounds`."""
    cells = occupied.nonzero()
    voxel = (bounds[1] - bounds[0]) / occupied.shape[0]
    return bounds[0] + torch.stack([cells.amin(0), cells.amax(0) + 1]) * voxel


def _distorted(points: Float[Tensor, "n 2"], distortion: Float[Tensor, " 6"]) -> Float[Tensor, "n 2"]:
    """OpenCV's radial and tangential lens distortion, with nerfstudio's (k1, k2, k3, k4, p1, p2)."""
    k1, k2, k3, k4, p1, p2 = distortion
    x, y = points.unbind(-1)
    r = points.square().sum(-1)
    radial = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (r + 2 * y * y),
        ],
        -1,
    )
