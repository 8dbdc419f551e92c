"""Cameras and their viewing axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def closest_point(origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Float[Tensor, " 3"]:
    """The point nearest to all viewing axes, in the least-squares sense."""
    directions = F.normalize(directions, dim=1)
    across = torch.eye(3, device=origins.device) - directions[:, :, None] * directions[:, None, :]
    return torch.linalg.lstsq(across.sum(0), (across @ origins[:, :, None]).sum(0)).solution[:, 0]
