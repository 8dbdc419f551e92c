"""Which latents of several views lie on the same point of the scene, and what can be carried between them.

Pure geometry: of rays and distances, whatever the lens. Everything is at the size of the latents, (h, w), and
nearest neighbours are taken: averages of noise would no longer be noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOLERANCE = 0.03
"""Relative difference of distances up to which two views are taken to see the same point."""


@dataclass(frozen=True)
class Correspondence:
    """Where the points that N views show lie in each other.

    Attributes:
        cells: [i, j, p] is the latent of view j, counted along rows, that is nearest to where view j has the
            point which latent p of view i shows.
        seen: [i, j, p] says whether view j shows that point: it is in the picture, and nothing before it.
    """

    cells: Int[Tensor, "n n p"]
    seen: Bool[Tensor, "n n p"]

    def carry_noise(self, noise: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Noise by which the same point of the scene has the same noise in all views that show it.

        A view takes, point by point, what the views before it have there, and its own where they show
        nothing of it. No latent of the noise is taken twice into one view, so that each view's is as white as
        it was: where the view shows a part larger than an earlier view, what would be repeated is its own.

        Args:
            noise: independent standard normal numbers.
        """
        n, _, height, width = noise.shape
        count = height * width
        own = torch.arange(n * count, device=noise.device).view(n, count)
        taken = own.clone()  # which latent of all the noise each view has where
        for view in range(1, n):
            for earlier in range(view):
                wanted = taken[earlier][self.cells[view, earlier]]
                free = self.seen[view, earlier] & (taken[view] == own[view])
                free &= ~torch.isin(wanted, taken[view])
                taken[view] = torch.where(_first_of_each(wanted, free), wanted, taken[view])
        flat = noise.transpose(0, 1).flatten(1)  # (c, n h w)
        return flat[:, taken].view(-1, n, height, width).transpose(0, 1).contiguous()

    def carry(self, values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n c h w"]:
        """[i, j]: what view j has, in the pixels of view i; where j does not see the point, i's own.

        Args:
            values: of all views.
        """
        flat = values.flatten(2)  # (n, c, p)
        n, channels, count = flat.shape
        cells = self.cells[:, :, None].expand(-1, -1, channels, -1)
        carried = flat[None].expand(n, -1, -1, -1).gather(3, cells)
        return torch.where(self.seen[:, :, None], carried, flat[:, None]).unflatten(3, values.shape[2:])


def find_correspondence(
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n h w 3"],
    distances: Float[Tensor, "n h w"],
    tolerance: float = TOLERANCE,
) -> Correspondence:
    """The correspondence of N views of one scene.

    A point lies in a view's picture if one of its rays passes it within the reach of a latent, and is seen
    there unless the distance along that ray says otherwise: it must lie between those half way to the
    neighbouring latents, for surfaces are slanted.

    Args:
        origins: of the cameras.
        directions: of the rays through the middles of the latents, of unit length.
        distances: along them, of the surface.
        tolerance: relative, of distances.
    """
    n, height, width = distances.shape
    # In double precision, which no setting for products of matrices gets at.
    origins, directions, distances = origins.double(), directions.double(), distances.double()
    points = (origins[:, None, None] + directions * distances[..., None]).flatten(1, 2)  # (n, p, 3)
    nearest, farthest = (sign * _towards_neighbours(sign * distances).flatten(1) for sign in (-1, 1))
    rays, reach = directions.flatten(1, 2), _reach(directions)
    cells = torch.empty(n, n, height * width, dtype=torch.long, device=distances.device)
    seen = torch.empty(n, n, height * width, dtype=torch.bool, device=distances.device)
    for i in range(n):
        for j in range(n):
            if i == j:
                cells[i, j] = torch.arange(height * width, device=distances.device)
                seen[i, j] = True
                continue
            away = points[i] - origins[j]
            distance = away.norm(dim=1)
            cosine, cell = (away @ rays[j].T).max(1)
            inside = cosine >= math.cos(reach[j]) * distance
            margin = tolerance * distance
            close = (distance >= nearest[j][cell] - margin) & (distance <= farthest[j][cell] + margin)
            cells[i, j], seen[i, j] = cell, inside & close
    return Correspondence(cells, seen)


def _first_of_each(values: Int[Tensor, " p"], among: Bool[Tensor, " p"]) -> Bool[Tensor, " p"]:
    """True at the first place of every value, of those places that count."""
    places = torch.arange(len(values), device=values.device)
    _, group = torch.unique(values, return_inverse=True)
    first = torch.full_like(places, len(places))
    first = first.scatter_reduce(0, group[among], places[among], "amin")
    return among & (first[group] == places)


def _towards_neighbours(distances: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """The farthest distance within half a latent, as neighbours let it be expected."""
    around = F.max_pool2d(F.pad(distances[:, None], (1, 1, 1, 1), "replicate"), 3, 1)[:, 0]
    return (distances + around) / 2


def _reach(directions: Float[Tensor, "n h w 3"]) -> list[float]:
    """Half the diagonal of each view's widest latent, as an angle in radians."""
    apart = [
        (directions.narrow(axis, 1, size - 1) - directions.narrow(axis, 0, size - 1)).norm(dim=-1)
        for axis, size in ((1, directions.shape[1]), (2, directions.shape[2]))
        if size > 1
    ]
    widest = torch.stack([along.flatten(1).amax(1) for along in apart]).amax(0)
    return [float(angle) / math.sqrt(2) for angle in widest]
