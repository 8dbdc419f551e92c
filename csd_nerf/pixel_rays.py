"""Rays through pixels of captured cameras, without solving for the lens each time."""

from __future__ import annotations

import torch
from jaxtyping import Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

_ONE_CENTRE = (CameraType.PERSPECTIVE, CameraType.FISHEYE)
_LARGEST_TABLE = 32_000_000
"""Pixels, of 20 bytes each."""


class PixelRays:
    """What `Cameras.generate_rays` gives for pixel centres, in a few operations.

    To undo a lens' distortion nerfstudio solves for every ray anew, which on a CPU takes as long as the
    field. But cameras of a capture have few lenses, mostly one: here the pixels of each are solved once,
    and turned to where a camera looks. Cameras whose rays have no common centre, that move, or that have
    too many lenses for a table are left to nerfstudio.

    Args:
        cameras: N of them; rays are made on their device.
    """

    def __init__(self, cameras: Cameras) -> None:
        self.cameras = cameras
        lenses, self._lens = _lenses(cameras)
        pixels = (lenses.height * lenses.width)[:, 0]
        kinds = {int(kind.value) for kind in _ONE_CENTRE}
        self._solved = (
            set(cameras.camera_type.unique().tolist()) <= kinds
            and cameras.times is None
            and not cameras.metadata
            and int(pixels.sum()) <= _LARGEST_TABLE
        )
        if not self._solved:
            return
        self._first = torch.cumsum(pixels, 0) - pixels
        rays = [lenses.generate_rays(lens, keep_shape=True).flatten() for lens in range(len(lenses))]
        parts = [
            torch.cat([of.directions, of.pixel_area, of.metadata["directions_norm"]], dim=1) for of in rays
        ]
        self._table = torch.cat(parts)  # of each pixel: direction (3), area, length before it was made 1

    def __call__(
        self, camera: Int[Tensor, " r"], row: Int[Tensor, " r"], column: Int[Tensor, " r"]
    ) -> RayBundle:
        """Rays (R,) through the centres of pixels; all indices on the cameras' device."""
        if not self._solved:
            centres = torch.stack([row, column], dim=1) + 0.5
            return self.cameras.generate_rays(camera_indices=camera[:, None], coords=centres)
        lens = self._lens[camera]
        pixels = self._table[self._first[lens] + row * self.cameras.width[camera, 0] + column]
        poses = self.cameras.camera_to_worlds[camera]
        direction, area, length = pixels.split([3, 1, 1], dim=1)
        return RayBundle(
            origins=poses[:, :, 3],
            # Not as a product of matrices, which autocast would do in half precision.
            directions=(poses[:, :, :3] * direction[:, None]).sum(2),
            pixel_area=area,
            camera_indices=camera[:, None],
            metadata={"directions_norm": length},
        )

    def of_view(self, camera: int) -> RayBundle:
        """Rays (H, W) of a whole view."""
        height, width = int(self.cameras.height[camera]), int(self.cameras.width[camera])
        device = self.cameras.device
        row, column = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        rays = self(torch.full_like(row, camera).flatten(), row.flatten(), column.flatten())
        return rays.reshape((height, width))


def _lenses(cameras: Cameras) -> tuple[Cameras, Tensor]:
    """The G different lenses among N cameras, looking along their own axes, and each camera's, (N,)."""
    numbers = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.height, cameras.width]
    numbers.append(cameras.camera_type)
    if cameras.distortion_params is not None:
        numbers.append(cameras.distortion_params)
    _, lens = torch.unique(torch.cat([of.double() for of in numbers], dim=1), dim=0, return_inverse=True)
    examples = torch.stack([(lens == number).nonzero()[0, 0] for number in range(int(lens.max()) + 1)])
    lenses = cameras[examples]
    lenses.camera_to_worlds = torch.eye(3, 4, device=cameras.device).repeat(len(examples), 1, 1)
    return lenses, lens
