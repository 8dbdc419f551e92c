"""A box in the scene, and the volume that it is while somebody moves it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import viser.transforms as vtf
from jaxtyping import Bool, Float
from torch import Tensor

from csd_nerf.errors import check

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class RegionBox:
    """A box in scene coordinates: nerfstudio's normalised ones, those of its viewer.

    Attributes:
        center: its middle.
        size: lengths of its edges.
        rotation: roll, pitch and yaw in radians, in the convention of the viewer's Crop Viewport.
    """

    center: Vector
    size: Vector
    rotation: Vector = (0.0, 0.0, 0.0)

    def contains(self, positions: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        """Which positions lie in the box."""
        axes = torch.as_tensor(vtf.SO3.from_rpy_radians(*self.rotation).as_matrix()).to(positions)  # columns
        along = (positions - positions.new_tensor(self.center)) @ axes
        return (along.abs() <= positions.new_tensor(self.size) / 2).all(-1)

    def check(self) -> None:
        """See that the box has a place and a volume.

        Raises:
            InputError: when it has not.
        """
        numbers = (*self.center, *self.size, *self.rotation)
        check(
            all(map(math.isfinite, numbers)) and min(self.size) > 0,
            "the box has no volume",
            expected="three positive lengths, and finite numbers for middle and rotation",
            got=self,
            hint="change --pipeline.region.box-size, box-center or box-rotation",
        )

    def __str__(self) -> str:
        center, size, rotation = (
            " ".join(f"{value:g}" for value in vector) for vector in (self.center, self.size, self.rotation)
        )
        return f"center {center}, size {size}, rotation {rotation}"


class MovableBox:
    """The volume of a box, which may be another one for every sample that it is asked about.

    Attributes:
        box: as it is now.
    """

    def __init__(self, box: RegionBox) -> None:
        self.box = box

    def contains(self, positions: Tensor) -> Tensor:
        """Which positions (..., 3) lie in the box as it is now, (...)."""
        return self.box.contains(positions)

    def state(self) -> dict[str, Vector]:
        """For a checkpoint."""
        return by_name(self.box)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, or a part of it."""
        self.box = RegionBox(*(tuple(state.get(name, value)) for name, value in by_name(self.box).items()))


def by_name(box: RegionBox) -> dict[str, Vector]:
    """The parts of a box, by the names of their settings."""
    return {"box_center": box.center, "box_size": box.size, "box_rotation": box.rotation}
