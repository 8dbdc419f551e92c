"""What an edit changes beyond what was there: drift of colours and brightness by place, and a test for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.scenes.operators import LUMA_WEIGHTS

LEAST_PICTURES = 8
"""Of fewer the test below could find nothing at its level: all of 2^N signs alike is as far as it goes."""
LEVEL = 0.01
"""Of the test: at most so often, chance alone finds something in a probe."""
LEAST_DRIFT = 0.03
"""Of 1: what is smaller is not reported, however certain."""
MOST_FLIPS = 4096
"""Sign patterns of the test; all of them where there are fewer."""

ATTRIBUTES = ("brightness", "red", "blue")
"""Luma; red beyond the luma; blue beyond the luma."""


@dataclass(frozen=True)
class Drift:
    """How far an attribute drifts in one region.

    Args:
        region: where, by its name.
        attribute: one of `ATTRIBUTES`.
        mean: over the pictures, of 1.
        each: of every picture.
        p: of the test, see `chances`.
    """

    region: str
    attribute: str
    mean: float
    each: tuple[float, ...]
    p: float

    @property
    def found(self) -> bool:
        """Whether it is too regular for chance, and large enough to matter."""
        return self.p < LEVEL and abs(self.mean) >= LEAST_DRIFT

    def in_words(self) -> str:
        """As a sentence's middle: `the top becomes redder by 0.12`."""
        words = {"brightness": ("brighter", "darker"), "red": ("redder", "less red")}
        more, less = words.get(self.attribute, ("bluer", "less blue"))
        return f"{self.region} becomes {more if self.mean > 0 else less} by {abs(self.mean):.2f}"


def regions(size: int) -> dict[str, Float[Tensor, "size size"]]:
    """Where drift is looked for: weights 0..1 of parts of a square picture, by their names."""
    third = torch.arange(size) * 3 // size
    rows, columns = third[:, None].expand(size, size), third[None].expand(size, size)
    return {
        "the top": (rows == 0).float(),
        "the bottom": (rows == 2).float(),
        "the left": (columns == 0).float(),
        "the right": (columns == 2).float(),
        "the middle": ((rows == 1) & (columns == 1)).float(),
    }


def attributes(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """`ATTRIBUTES` of every pixel, linear in its colour; so those of a difference are differences of them."""
    luma = (pictures * pictures.new_tensor(LUMA_WEIGHTS).reshape(3, 1, 1)).sum(1)
    return torch.stack([luma, pictures[:, 0] - luma, pictures[:, 2] - luma], dim=1)


def beyond_colours(
    change: Float[Tensor, "n c h w"], source: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, "n c h w"]:
    """A change, or anything else of each pixel, without what the colours there explain of it, wherever.

    Least squares over all pixels of all pictures by polynomials of the source's colour: quadratic in red,
    green and blue, and luma to the fifth power. An edit that does the same to equal colours leaves next to
    nothing, though skies are bright and mostly above.

    Args:
        change: of the pictures.
        source: as they were, 0..1.
    """
    red, green, blue = source.double().unbind(1)
    luma = attributes(source.double())[:, 0]
    colours = (red, green, blue)
    products = [colours[i] * colours[j] for i in range(3) for j in range(i, 3)]
    powers = [luma**power for power in (3, 4, 5)]
    terms = torch.stack([torch.ones_like(red), *colours, *products, *powers], dim=-1).flatten(0, 2)
    wanted = change.double().permute(0, 2, 3, 1).flatten(0, 2)
    # Luma and its parts are one another's sums: the solver must stand that.
    explained = terms @ torch.linalg.lstsq(terms, wanted, driver="gelsd").solution
    count, channels, height, width = change.shape
    return (wanted - explained).reshape(count, height, width, channels).permute(0, 3, 1, 2).float()


def by_place(
    change: Float[Tensor, "n 3 h w"],
    source: Float[Tensor, "n 3 h w"],
    where: dict[str, Float[Tensor, "_ h w"]],
) -> list[Drift]:
    """Drift of each region against the rest of the picture, beyond what colours explain.

    As in a regression of the change on colours and region together, so that what both could explain, because
    skies are bright and above, counts for neither: with change c and weights w without what colours explain
    of them, c' and w', the drift is `sum c' w' / sum w'^2`, and a picture's part in it N times its summand.

    Args:
        change, source: see `beyond_colours`.
        where: weights 0..1 of every region, (h, w) for all pictures or (n, h, w) for each.
    """
    left = attributes(beyond_colours(change, source))
    names, columns = [], []
    for region, weights in where.items():
        inside = beyond_colours(weights.expand(len(left), *weights.shape[-2:])[:, None], source)
        contrast = len(left) * (left * inside).sum((2, 3)) / inside.square().sum().clamp(min=1e-6)
        for attribute, column in zip(ATTRIBUTES, contrast.unbind(1), strict=True):
            names.append((region, attribute))
            columns.append(column)
    return _drifts(names, torch.stack(columns, dim=1))


def everywhere(change: Float[Tensor, "n 3 h w"]) -> list[Drift]:
    """Drift of whole pictures."""
    names = [("the picture", attribute) for attribute in ATTRIBUTES]
    return _drifts(names, attributes(change).mean((2, 3)))


def chances(values: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """How probable it is that means as regular as these are chance: a test by flipped signs.

    If there is no drift, a picture's value is as likely to have the other sign. Signs are flipped, of all
    values of a picture together; p is the share of sign patterns in which *any* of the k columns has a mean
    as large, in units of its standard error, as the column's own (Westfall and Young's max-T), so that many
    columns do not make findings likelier.

    Args:
        values: of n pictures, for k questions.
    """
    values = values.double()
    count = len(values)
    if 2**count <= MOST_FLIPS:
        signs = 1 - 2.0 * (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).double()
    else:
        generator = torch.Generator().manual_seed(0)
        signs = 1 - 2.0 * torch.randint(2, (MOST_FLIPS, count), generator=generator).double()
        signs[0] = 1
    squares = values.square().sum(0)  # flips leave them as they are

    def studentised(means: Tensor) -> Tensor:
        variance = (squares - count * means.square()).clamp(min=1e-12) / (count - 1)
        return means.abs() / (variance / count).sqrt()

    flipped = studentised(signs @ values / count).amax(1)  # (flips,)
    own = studentised(values.mean(0))
    return (flipped[:, None] >= own - 1e-9).double().mean(0)


def _drifts(names: list[tuple[str, str]], values: Float[Tensor, "n k"]) -> list[Drift]:
    probabilities = chances(values)
    return [
        Drift(region, attribute, column.mean().item(), tuple(column.tolist()), p)
        for (region, attribute), column, p in zip(
            names, values.unbind(1), probabilities.tolist(), strict=True
        )
    ]
