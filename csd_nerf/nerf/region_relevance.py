"""The volume in which a prompt changes something, as the diffusion model says of many views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.field_components.spatial_distortions import SceneContraction
from torch import Tensor

from csd_nerf.errors import check
from csd_nerf.nerf.region_voxels import Voxels, grown

RESOLUTIONS = (256, 128, 64, 32)
"""Voxels along each edge of the contracted scene, a cube of 4 scene units: the first of these in which
several views meet nearly as often as in the largest voxels. Small views, and surfaces that are not exact,
need large ones."""
NEARLY = 0.8
"""How often, of that, is nearly as often."""
FEWEST_VIEWS = 4
"""So many must show a voxel for it to be voted on; all of them where there are fewer."""
VIEWS = 24
"""At most so many views are asked about, spread over the capture."""
LEAST = 0.02
"""Relevance, in units of scaled latents, below which a prompt changes nothing anywhere."""
CLEAR = 0.7
"""Separation from which on the region is one; a single heap, cut in the middle, has about 0.65."""

_contracted = SceneContraction(order=float("inf"))


@dataclass(frozen=True)
class Vote:
    """What came of asking.

    Attributes:
        share: of what the views show, the part that is in the region, 0..1.
        separation: how clearly two kinds of places were found, 0..1, see `otsu`.
    """

    share: float
    separation: float


class RelevantVoxels(Voxels):
    """Voxels of the surfaces which a prompt is about.

    Their grid is that of the contracted scene, in which all of space is finite: a sky or a far hill may be
    what it is about.
    """

    def contains(self, positions: Float[Tensor, "*n 3"]) -> Bool[Tensor, "*n"]:
        return super().contains(_contracted(positions))

    def vote(self, surface: Float[Tensor, "v p 3"], relevance: Float[Tensor, "v p"]) -> Vote:
        """Let the views decide: the region is where the relevance is high in most views that show a place.

        Each view has one vote on each voxel, its mean relevance in the pixels that show it; a voxel's
        relevance is their median, so that up to half of the views may be wrong about it, and then a mean over
        the voxels around it. The threshold is Otsu's, over all pixels.

        Args:
            surface: what the pixels of the views show, in scene coordinates.
            relevance: of these pixels.

        Raises:
            InputError: there is next to no relevance anywhere.
        """
        places = _contracted(surface.cpu())
        looks = [_votes(places, relevance.cpu().float(), resolution) for resolution in RESOLUTIONS]
        fewest = min(FEWEST_VIEWS, len(relevance))
        met = [shown[:, (shown > 0).sum(0) >= fewest].sum() for _, _, shown in looks]
        chosen = next(number for number, count in enumerate(met) if count >= NEARLY * met[-1])
        resolution, (voxels, votes, shown) = RESOLUTIONS[chosen], looks[chosen]
        decided = (shown > 0).sum(0) >= fewest
        total = shown.sum()
        voxels, weights = voxels[decided], shown.sum(0)[decided]
        values = torch.nanmedian(votes[:, decided], dim=0).values
        grid = (resolution,) * 3
        sums = torch.zeros(2, resolution**3)
        sums[:, voxels] = torch.stack([values * weights, weights])
        around, counts = F.avg_pool3d(sums.view(2, *grid), 3, stride=1, padding=1).flatten(1)[:, voxels]
        values = around / counts
        strongest = float(values.max()) if len(values) else 0.0
        check(
            strongest >= LEAST,
            "the diffusion model sees nothing in the scene that the prompt would change",
            expected=f"a relevance of at least {LEAST} somewhere",
            got=f"{strongest:.3f} at most",
            hint="use other words, or give a box: --pipeline.region.source box",
        )
        threshold, separation = otsu(values, weights)
        inside = values > threshold
        occupied = torch.zeros(resolution**3, dtype=torch.bool)
        occupied[voxels[inside]] = True
        # A surface is a layer in a field, not a sheet.
        self._keep(grown(occupied.view(grid)))
        return Vote(float(weights[inside].sum() / total), separation)

    def _keep(self, occupied: Bool[Tensor, "x y z"]) -> None:
        """The occupied part of the grid alone."""
        cells = occupied.nonzero()
        low, high = cells.amin(0), cells.amax(0) + 1
        x, y, z = (slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True))
        self.occupied = occupied[x, y, z].clone()
        self.bounds = -2 + 4 / len(occupied) * torch.stack([low, high]).float()


def _votes(
    places: Float[Tensor, "v p 3"], relevance: Float[Tensor, "v p"], resolution: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, "v n"], Float[Tensor, "v n"]]:
    """The voxels that are seen, as numbers in the grid; each view's mean relevance in them, NaN where it does
    not show them; and in how many pixels it does."""
    views, pixels = relevance.shape
    x, y, z = ((places + 2) / 4 * resolution).long().clamp(0, resolution - 1).unbind(-1)
    voxels, voxel = torch.unique((x * resolution + y) * resolution + z, return_inverse=True)
    place = (voxel + len(voxels) * torch.arange(views)[:, None]).flatten()
    sums, shown = torch.zeros(2, views * len(voxels))
    sums.index_add_(0, place, relevance.flatten())
    shown.index_add_(0, place, torch.ones(views * pixels))
    return voxels, (sums / shown).view(views, -1), shown.view(views, -1)


def otsu(values: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> tuple[float, float]:
    """The threshold that sets two groups of values apart best (Otsu 1979), and how well it does.

    Args:
        values: finite.
        weights: how often each counts, above 0.

    Returns:
        A threshold, below which or at which is the lower group; and the share of the variance that lies
        between the groups, 0..1: 2/pi of a single normal heap, 1 of two values.

    >>> threshold, separation = otsu(torch.tensor([0.0, 0.1, 1.0, 1.1]), torch.ones(4))
    >>> round(threshold, 3), round(separation, 3)
    (0.1, 0.99)
    """
    values, order = values.double().sort()
    weights = weights[order].double() / weights.sum()
    below, mean = weights.cumsum(0)[:-1], (weights * values).cumsum(0)
    total, mean = mean[-1], mean[:-1]
    between = (total * below - mean).square() / (below * (1 - below)).clamp(min=1e-12)
    variance = (weights * (values - total).square()).sum().clamp(min=1e-24)
    best = int(between.argmax()) if len(between) else 0
    return float(values[best]), float(between[best] / variance) if len(between) else 0.0
