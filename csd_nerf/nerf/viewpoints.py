"""Cameras that look at the origin from a shell around it, and what to call the side they see.

Angles are in degrees. The vertical axis is z; azimuth 0 is the +x axis, which is where the front is, and
grows towards +y; elevation 90 is straight above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from csd_nerf.cameras import poses_around

Range = tuple[float, float]

SIDES = ("front", "side", "back", "overhead")
OVERHEAD_FROM = 60.0
"""Elevation from which a view is called an overhead view, as in DreamFusion."""
FRONT_WITHIN, BACK_FROM = 45.0, 135.0
"""Azimuths, to either side, up to which a view is called a front view and from which a back view."""


@dataclass(frozen=True)
class Viewpoints:
    """Where N cameras are.

    Attributes:
        distance: from the origin, in scene units.
        elevation: above the horizon, -90..90 degrees.
        azimuth: about the vertical axis, in degrees.
        field_of_view: along the side of the square picture, in degrees.
    """

    distance: Float[Tensor, " n"]
    elevation: Float[Tensor, " n"]
    azimuth: Float[Tensor, " n"]
    field_of_view: Float[Tensor, " n"]

    def sides(self) -> list[str]:
        """Which of the `SIDES` each of them shows, see `side_of`."""
        return [side_of(*place) for place in zip(self.elevation.tolist(), self.azimuth.tolist(), strict=True)]

    def cameras(self, size: int) -> Cameras:
        """N cameras with square pictures of `size` pixels a side, the origin at their centre."""
        poses = poses_around(
            torch.zeros(3),
            distance=self.distance,
            elevation=self.elevation.deg2rad(),
            azimuth=self.azimuth.deg2rad(),
        )
        focal = size / 2 / torch.tan(self.field_of_view.deg2rad() / 2)
        return Cameras(
            camera_to_worlds=poses,
            fx=focal[:, None],
            fy=focal[:, None],
            cx=size / 2,
            cy=size / 2,
            width=size,
            height=size,
            camera_type=CameraType.PERSPECTIVE,
        )


def random_viewpoints(
    distance: Range,
    elevation: Range,
    azimuth: Range,
    field_of_view: Range,
    *,
    count: int,
    seed: int,
    step: int,
) -> Viewpoints:
    """The viewpoints of a step: uniform in each range, the azimuths one in each of `count` equal sectors.

    So the views of a step are spread around the scene, and every azimuth is equally likely for the step as
    a whole. The draw depends on (seed, step) alone.
    """
    generator = np.random.default_rng((seed, step))

    def uniform(bounds: Range, place: np.ndarray) -> Tensor:
        low, high = bounds
        return torch.from_numpy(low + (high - low) * place).float().clamp(low, high)

    places = generator.random((4, count))
    in_sectors = (np.arange(count) + places[2]) / count
    return Viewpoints(
        distance=uniform(distance, places[0]),
        elevation=uniform(elevation, places[1]),
        azimuth=uniform(azimuth, in_sectors),
        field_of_view=uniform(field_of_view, places[3]),
    )


def orbit(distance: float, elevation: float, field_of_view: float, *, count: int) -> Viewpoints:
    """Viewpoints all around the vertical axis, at one height; the first is at the front."""
    return Viewpoints(
        distance=torch.full((count,), distance),
        elevation=torch.full((count,), elevation),
        azimuth=torch.arange(count) * (360.0 / count),
        field_of_view=torch.full((count,), field_of_view),
    )


def side_of(elevation: float, azimuth: float) -> str:
    """Which of the `SIDES` a viewpoint shows (DreamFusion, 2209.14988, section 3).

    Example:
        >>> side_of(elevation=10, azimuth=170)
        'back'
    """
    if elevation >= OVERHEAD_FROM:
        return "overhead"
    turned = abs((azimuth + 180) % 360 - 180)
    if turned <= FRONT_WITHIN:
        return "front"
    return "back" if turned >= BACK_FROM else "side"


def view_prompt(prompt: str, side: str) -> str:
    """The prompt of a view that shows that side: "a corgi, front view"."""
    return f"{prompt}, {side} view"
