"""A part of space given by voxels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


class Voxels:
    """A part of space, which is empty before something is put into it.

    Attributes:
        occupied: along x, y and z.
        bounds: (2, 3), lower and upper corner of the grid, in scene coordinates before contraction.
    """

    def __init__(self) -> None:
        self.occupied: Bool[Tensor, "x y z"] = torch.zeros(1, 1, 1, dtype=torch.bool)
        self.bounds: Float[Tensor, "2 3"] = torch.tensor([[-1.0] * 3, [1.0] * 3])

    def contains(self, positions: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        """Which positions, in scene coordinates, lie in an occupied voxel."""
        if self.occupied.device != positions.device:
            self.occupied, self.bounds = (part.to(positions.device) for part in (self.occupied, self.bounds))
        low, high = self.bounds
        size = positions.new_tensor(self.occupied.shape)
        cell = ((positions - low) / (high - low) * size).floor()
        within = ((cell >= 0) & (cell < size)).all(-1)
        x, y, z = cell.nan_to_num().clamp(min=0).minimum(size - 1).long().unbind(-1)
        return within & self.occupied[x, y, z]

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"occupied": self.occupied.cpu(), "bounds": self.bounds.cpu()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.occupied, self.bounds = state["occupied"], state["bounds"]


def grown(occupied: Bool[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """The voxels and their neighbours."""
    return F.max_pool3d(occupied[None].float(), 3, stride=1, padding=1)[0] > 0
