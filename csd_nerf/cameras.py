"""Cameras of a capture: cut to one shape, corrected, chosen for a step, and a turntable past what they see.

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
LARGEST_GAP = 2 * math.pi / 3
"""Radians about the vertical axis from which no camera looks, up to which a capture is one from all sides."""
ONE_WAY = math.pi / 6
"""Radians off their mean direction up to which cameras look one way."""
FAR = 100.0
"""Distance, in spreads of the cameras, from which what is looked at lies in the same direction for all."""


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


class PathSampler:
    """Draws ways through the capture: from cameras all over it on and on to the nearest that is left.

    Of a captured film these are stretches of it, one way or the other; of photos from all over, the nearest
    that there is to such. No camera is on two ways of a step. The draw depends on (seed, step) alone.

    Args:
        cameras: of the training split, (N).
        paths: how many ways.
        views: of each.
        seed: of where they begin.
        option: the command line's name of their number.

    Raises:
        InputError: when there are fewer cameras than views.
    """

    def __init__(self, cameras: Cameras, paths: int, views: int, seed: int, option: str) -> None:
        count = len(cameras)
        check(
            1 <= paths * views <= count,
            "there are not enough cameras for the clips that are edited together",
            expected=f"at most {count // views} of {views} views, of {count} training cameras",
            got=paths,
            hint=f"use `{option} {max(count // views, 1)}`, or clips of fewer views",
        )
        self._begin = CameraSampler(cameras, paths, seed, option)
        self._views = views
        poses = cameras.camera_to_worlds.cpu().double()
        positions, forward = poses[:, :3, 3], -poses[:, :3, 2]
        spread = (positions - positions.mean(0)).norm(dim=1).mean().clamp(min=1e-9)
        # A step aside counts as much as a turn by which what is as far away as the cameras are spread moves
        # by it.
        places = torch.cat([positions / spread, forward], dim=1)
        self._distances = torch.cdist(places, places)

    @property
    def seed(self) -> int:
        return self._begin.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._begin.seed = seed

    def __call__(self, step: int) -> list[int]:
        """Indices of the training cameras of this step, way after way."""
        ways = [[first] for first in self._begin(step)]
        left = torch.ones(len(self._distances), dtype=torch.bool)
        left[[way[0] for way in ways]] = False
        for _ in range(self._views - 1):
            for way in ways:  # each in its turn, so that none takes what lies before another
                nearest = int(self._distances[way[-1]].where(left, torch.inf).argmin())
                left[nearest] = False
                way.append(nearest)
        return [index for way in ways for index in way]


def turntable_cameras(cameras: Cameras, frames: int, height: int, width: int) -> Cameras:
    """A closed way past what the capture shows, where cameras have been: around it, or to and fro before it.

    Args:
        cameras: of the capture, (N).
        frames: number of cameras on the way.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
    """
    positions, forward = cameras.camera_to_worlds[:, :3, 3], -cameras.camera_to_worlds[:, :3, 2]
    turn = torch.arange(frames, device=positions.device) * (2 * math.pi / frames)
    looked_at = closest_point(positions, forward)
    poses = (
        _circle(positions, looked_at, turn)
        if _from_all_sides(forward)
        else _sway(cameras.camera_to_worlds, looked_at, turn)
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


def _from_all_sides(forward: Float[Tensor, "n 3"]) -> bool:
    """Whether cameras look from all around the vertical axis, and not all nearly one way (down, say)."""
    azimuths = torch.atan2(forward[:, 1], forward[:, 0]).sort().values
    gaps = torch.diff(azimuths, append=azimuths[:1] + 2 * math.pi)
    mean = F.normalize(forward.mean(0), dim=0)
    one_way = (forward @ mean).quantile(0.1) > math.cos(ONE_WAY)
    return bool(gaps.max() <= LARGEST_GAP) and not bool(one_way)


def _circle(
    positions: Float[Tensor, "n 3"], target: Float[Tensor, " 3"], turn: Float[Tensor, " frames"]
) -> Float[Tensor, "frames 3 4"]:
    """Poses all around what is looked at, at the capture's own height and distance."""
    offset = positions - target
    level, above = offset[:, :2].norm(dim=1).median(), offset[:, 2].median()
    return poses_around(
        target,
        distance=torch.hypot(level, above).expand(len(turn)),
        elevation=torch.atan2(above, level).expand(len(turn)),
        azimuth=torch.atan2(offset[0, 1], offset[0, 0]) + turn,
    )


def _sway(
    poses: Float[Tensor, "n 3 4"], looked_at: Float[Tensor, " 3"], turn: Float[Tensor, " frames"]
) -> Float[Tensor, "frames 3 4"]:
    """Poses along an ellipse among the cameras, as wide and as high as most of them are spread.

    They look at one point, at the angles about it that cameras have: where axes meet, or, of axes that do
    not, far away in their common direction.
    """
    positions, forward = poses[:, :, 3], -poses[:, :, 2]
    middle, mean = positions.mean(0), F.normalize(forward.mean(0), dim=0)
    target = looked_at if _meet(positions, forward, looked_at) else middle + FAR * _spread(positions) * mean
    offset = positions - target
    # In axes of their own, z up in pictures and x from the target to their midst, angles stay off the poles.
    back = F.normalize(F.normalize(offset, dim=1).mean(0), dim=0)
    up = poses[(forward @ mean).argmax(), :, 1]
    up = F.normalize(up - (up @ back) * back, dim=0)
    axes = torch.stack([back, torch.linalg.cross(up, back), up], dim=1)
    ahead, aside, above = (offset @ axes).unbind(1)
    azimuth, azimuth_range = _most_of(torch.atan2(aside, ahead))
    elevation, elevation_range = _most_of(torch.atan2(above, torch.hypot(ahead, aside)))
    swayed = poses_around(
        torch.zeros_like(target),
        distance=offset.norm(dim=1).median().expand(len(turn)),
        elevation=elevation + elevation_range * turn.cos(),
        azimuth=azimuth + azimuth_range * turn.sin(),
    )
    moved = axes @ swayed
    moved[:, :, 3] += target
    return moved


def _meet(positions: Float[Tensor, "n 3"], forward: Float[Tensor, "n 3"], point: Float[Tensor, " 3"]) -> bool:
    """Whether viewing axes meet at a point before the cameras: there they are closer than the cameras are."""
    to_point = point - positions
    depths = (to_point * forward).sum(1)
    past = (to_point - depths[:, None] * forward).square().sum(1).mean().sqrt()
    return bool(depths.quantile(0.1) > 0) and bool(past < _spread(positions) / 2)


def _spread(positions: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    return (positions - positions.mean(0)).square().sum(1).mean().sqrt()


def _most_of(values: Float[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Middle and half width of the range that four of five values are in."""
    low, high = values.quantile(0.1), values.quantile(0.9)
    return (low + high) / 2, (high - low) / 2


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
