"""Which views of a capture an evaluation draws: evaluation cameras, and neighbours near and far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from csd_nerf.cameras import closest_point, pinhole_cameras

SHORT_DEGREES = 8.0
"""Parallax wanted of a short baseline."""

LONG_DEGREES = 30.0
"""Parallax wanted of a long baseline."""

LEAST_DEGREES = 0.5
"""Cameras nearer than this count as standing at one place: in some captures the evaluation photos are
training photos too."""


@dataclass(frozen=True)
class Baseline:
    """Pairs of views a certain way apart.

    Attributes:
        pairs: (evaluation view, its neighbour), as positions in `CamerasWithNeighbours.cameras`.
        degrees: of each pair, the angle between the two cameras as seen from what the capture looks at.
    """

    pairs: list[tuple[int, int]]
    degrees: list[float]


@dataclass(frozen=True)
class CamerasWithNeighbours:
    """Cameras of one size, without distortion.

    Attributes:
        cameras: the evaluation views first, then their neighbours.
        count: of evaluation views.
        short, long: a neighbour for each evaluation view; empty where the capture has one viewpoint.
    """

    cameras: Cameras
    count: int
    short: Baseline
    long: Baseline


def with_neighbours(evaluation: Cameras, training: Cameras) -> CamerasWithNeighbours:
    """The evaluation cameras and, for each of them, its neighbours among all cameras of the capture.

    The neighbour is the camera whose parallax is nearest to what a baseline wants (`SHORT_DEGREES`,
    `LONG_DEGREES`). How near that is depends on how densely the scene was captured; see `Baseline.degrees`.

    Args:
        evaluation: (E) of the size of the views.
        training: (T) of the same size, on the same device.
    """
    captured = pinhole_cameras(evaluation, training)
    positions, forward = captured.camera_to_worlds[:, :3, 3], -captured.camera_to_worlds[:, :3, 2]
    angles = parallax_degrees(positions, closest_point(positions, forward))[: len(evaluation)]
    short, long = (nearest_parallax(angles, wanted) for wanted in (SHORT_DEGREES, LONG_DEGREES))
    drawn = list(range(len(evaluation)))
    drawn += sorted({neighbour for _, neighbour in short + long} - set(drawn))

    def baseline(pairs: list[tuple[int, int]]) -> Baseline:
        return Baseline(
            [(view, drawn.index(neighbour)) for view, neighbour in pairs],
            [float(angles[pair]) for pair in pairs],
        )

    cameras = captured[torch.tensor(drawn)]
    return CamerasWithNeighbours(cameras, len(evaluation), baseline(short), baseline(long))


def parallax_degrees(positions: Float[Tensor, "n 3"], point: Float[Tensor, " 3"]) -> Float[Tensor, "n n"]:
    """Angle between every two positions as seen from a point, in degrees."""
    directions = F.normalize(positions.double() - point.double(), dim=1)
    return torch.rad2deg(torch.acos((directions @ directions.T).clamp(-1, 1))).cpu()


def nearest_parallax(angles: Float[Tensor, "e n"], wanted: float) -> list[tuple[int, int]]:
    """Each row with the column whose angle, of those from `LEAST_DEGREES` on, is nearest to `wanted`."""
    distance = torch.where(angles >= LEAST_DEGREES, (angles - wanted).abs(), torch.inf)
    best = distance.min(dim=1)
    rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [(row, column) for row, (value, column) in enumerate(rows) if value < float("inf")]
