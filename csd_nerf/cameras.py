"""Cameras of a capture: cut to one shape, corrected, chosen for a step, and an orbit through their midst.

Cameras of scenes without a capture are in `csd_nerf.nerf.viewpoints`: random ones about the origin, whose
sides have names for prompts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from csd_nerf.errors import check

PARALLEL = 1e-5
"""Radians between viewing axes up to which they count as parallel; float32 resolves about 1e-7."""


def replaced(cameras: Cameras, **fields: Any) -> Cameras:
    """The cameras with some fields changed.

    Args:
        cameras: (N), left as they are.
        fields: of nerfstudio's `Cameras`, by name; values as its constructor takes them.
    """
    return dataclasses.replace(cameras, **fields)


def view_size(cameras: Cameras, short_side: int, multiple: int) -> tuple[int, int]:
    """Height and width, in pixels, in which all views of a capture are rendered for the prior.

    The aspect ratio is the median of the capture's; the long side is rounded to what the prior's
    autoencoder can take.

    Raises:
        InputError: see `check_short_side`.
    """
    check_short_side(short_side, multiple)
    aspect = float(torch.median(cameras.width.float() / cameras.height.float()))  # width / height
    long_side = max(multiple, round(short_side * max(aspect, 1 / aspect) / multiple) * multiple)
    return (short_side, long_side) if aspect >= 1 else (long_side, short_side)


def check_short_side(short_side: int, multiple: int, flag: str = "--pipeline.render-size") -> None:
    """See that the size at which views go through the prior suits its autoencoder.

    Args:
        short_side: in pixels.
        multiple: the autoencoder's factor.
        flag: option that sets the size.

    Raises:
        InputError: when `short_side` is not a multiple of the autoencoder's factor.
    """
    lower = max(short_side // multiple, 1) * multiple
    check(
        short_side > 0 and short_side % multiple == 0,
        f"{flag} does not fit the prior's autoencoder",
        expected=f"a positive multiple of {multiple}",
        got=short_side,
        hint=f"use `{flag} {lower}` or {lower + multiple}",
    )


def fit_cameras(cameras: Cameras, height: int, width: int) -> Cameras:
    """Cameras (N) that see the largest centred part of each photo with the shape (height, width)."""
    scale = torch.maximum(height / cameras.height.float(), width / cameras.width.float())  # (N, 1)
    return replaced(
        cameras,
        fx=cameras.fx * scale,
        fy=cameras.fy * scale,
        cx=cameras.cx * scale - (cameras.width * scale - width) / 2,
        cy=cameras.cy * scale - (cameras.height * scale - height) / 2,
        width=torch.full_like(cameras.width, width),
        height=torch.full_like(cameras.height, height),
    )


def fit_photo(photo: Float[Tensor, "h w c"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    """The part of a photo (RGB or RGBA in 0..1) that `fit_cameras` sees, resampled with antialiasing."""
    image = photo[..., :3]
    if photo.shape[-1] == 4:
        image = image * photo[..., 3:]
    image = image.permute(2, 0, 1)[None]
    scale = max(height / image.shape[-2], width / image.shape[-1])
    # Cropping before resampling keeps the sub-pixel offset of `fit_cameras` to within half a photo pixel.
    crop_height, crop_width = round(height / scale), round(width / scale)
    top, left = (image.shape[-2] - crop_height) // 2, (image.shape[-1] - crop_width) // 2
    image = image[..., top : top + crop_height, left : left + crop_width]
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def corrected_cameras(cameras: Cameras, corrections: Float[Tensor, "n 3 4"]) -> Cameras:
    """The cameras as training rays come out of them, with what nerfacto learned about their poses.

    Args:
        cameras: (N).
        corrections: output of nerfacto's camera optimiser for each of them.
    """
    poses = cameras.camera_to_worlds
    moved = torch.cat([corrections[:, :, :3] @ poses[:, :, :3], poses[:, :, 3:] + corrections[:, :, 3:]], -1)
    return replaced(cameras, camera_to_worlds=moved)


def pinhole_cameras(*groups: Cameras) -> Cameras:
    """All cameras in one list, each the pinhole camera of its pose, focal lengths and principal point."""
    kept = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(cameras, name) for cameras in groups]) for name in kept
    }
    return Cameras(**joined, camera_type=CameraType.PERSPECTIVE)


class CameraSampler:
    """Draws the cameras of a step: distinct, spread over the capture, all used equally often.

    Cameras are sorted by their angle about the capture's centre and cut into as many sectors as a step
    has views; a step takes one camera of each sector, and every sector is gone through in a new
    random order each time. The draw depends on (seed, step) alone, so a resumed edit continues it.

    Args:
        cameras: of the training split, (N).
        views: how many a step takes.
        seed: of the orders.
        option: the command line's name of their number.

    Raises:
        InputError: when there are fewer cameras than views.
    """

    def __init__(self, cameras: Cameras, views: int, seed: int, option: str) -> None:
        count = len(cameras)
        check(
            1 <= views <= count,
            "there are not enough cameras for the views that are edited together",
            expected=f"between 1 and {count} views, the number of training cameras",
            got=views,
            hint=f"use `{option} {min(4, count)}`, or a dataset with more photos",
        )
        positions = cameras.camera_to_worlds[:, :3, 3].cpu()
        offset = positions - positions.mean(0)
        by_angle = torch.argsort(torch.atan2(offset[:, 1], offset[:, 0]))
        self.sectors = torch.tensor_split(by_angle, views)
        self.seed = seed

    def __call__(self, step: int) -> list[int]:
        """Indices of the training cameras of this step, one of each sector."""
        return [self._draw(sector, number, step) for number, sector in enumerate(self.sectors)]

    def _draw(self, sector: Tensor, number: int, step: int) -> int:
        lap, place = divmod(step, len(sector))
        order = np.random.default_rng((self.seed, number, lap)).permutation(len(sector))
        return int(sector[order[place]])


def turntable_cameras(cameras: Cameras, frames: int, height: int, width: int) -> Cameras:
    """A closed orbit around what the capture looks at, at the capture's own height and distance.

    Args:
        cameras: of the capture, (N).
        frames: number of cameras on the orbit.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
    """
    positions = cameras.camera_to_worlds[:, :3, 3]
    target = closest_point(positions, -cameras.camera_to_worlds[:, :3, 2])
    offset = positions - target
    level, above = offset[:, :2].norm(dim=1).median(), offset[:, 2].median()
    around = torch.arange(frames, device=positions.device) * (2 * math.pi / frames)
    poses = poses_around(
        target,
        distance=torch.hypot(level, above).expand(frames),
        elevation=torch.atan2(above, level).expand(frames),
        azimuth=torch.atan2(offset[0, 1], offset[0, 0]) + around,
    )
    fitted = fit_cameras(cameras, height, width)
    return Cameras(
        camera_to_worlds=poses,
        fx=fitted.fx.median().item(),
        fy=fitted.fy.median().item(),
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    ).to(positions.device)


def poses_around(
    target: Float[Tensor, " 3"],
    *,
    distance: Float[Tensor, " n"],
    elevation: Float[Tensor, " n"],
    azimuth: Float[Tensor, " n"],
) -> Float[Tensor, "n 3 4"]:
    """Camera-to-world matrices (OpenGL's axes, z of the scene up) that look at a point.

    Args:
        target: looked at.
        distance: from it, in scene units.
        elevation: above it, in radians from -pi/2 to pi/2.
        azimuth: about the vertical axis through it, in radians from +x towards +y.
    """
    along, across = azimuth.cos(), azimuth.sin()
    back = torch.stack([elevation.cos() * along, elevation.cos() * across, elevation.sin()], dim=1)
    # Straight from the azimuth, not from `back`: it is defined at the poles too.
    right = torch.stack([-across, along, torch.zeros_like(azimuth)], dim=1)
    eyes = target + distance[:, None] * back
    return torch.stack([right, torch.linalg.cross(back, right), back, eyes], dim=-1)


def closest_point(origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Float[Tensor, " 3"]:
    """The point nearest to all viewing axes, in the least-squares sense.

    Of parallel axes, which have a whole line of such points, that nearest to the origin.

    Args:
        origins: of the axes.
        directions: of the axes, of any length but 0.
    """
    # On the CPU and by pseudo-inverse: torch.linalg.lstsq on a GPU demands axes that are not parallel.
    starts, along = origins.double().cpu(), F.normalize(directions.double().cpu(), dim=1)
    across = torch.eye(3, dtype=along.dtype) - along[:, :, None] * along[:, None, :]
    inverse = torch.linalg.pinv(across.sum(0), rtol=PARALLEL**2, hermitian=True)
    return (inverse @ (across @ starts[:, :, None]).sum(0))[:, 0].to(origins)
