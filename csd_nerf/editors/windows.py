"""Overlapping windows that cover a picture, with weights that add up to one everywhere.

Used twice: for the particles of an edit step, whose grid is shifted at random from step to step, and for the
tiles in which an autoencoder takes a picture too large for it, whose grid stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

MARGIN = 1 / 12
"""Of a window at either end, that counts only where no other window has anything better to say: convolutions
see zeros beyond the end there."""
_IN_MARGIN = 1e-4
MOST_SPACING = 2 / 3
"""Distance between neighbouring windows as a fraction of a window, at most: shifted by up to half of it
either way they still meet."""


@dataclass(frozen=True)
class Cover:
    """Windows of one size along one side of a picture.

    Every position has weights that add up to exactly one over the windows that hold it, whether it lies in
    the middle or at the border. A window's weight falls off towards its ends, where a network sees least
    around it, and is next to nothing in a margin.

    Args:
        length: of the side.
        starts: first position of each window; where the side wraps, a window may run over its end and go on
            at its beginning.
        window: length of the windows.
    """

    length: int
    starts: tuple[int, ...]
    window: int

    def indices(self, index: int) -> Int[Tensor, " window"]:
        """The positions that a window holds."""
        return (self.starts[index] + torch.arange(self.window)) % self.length

    @cached_property
    def weights(self) -> Float[Tensor, "windows window"]:
        """The weight of each window at each of its positions."""
        inside = (torch.arange(self.window, dtype=torch.float64) + 0.5) / self.window
        # Two windows that overlap by a third fade into each other between their margins.
        fade = (torch.minimum(inside, 1 - inside) - MARGIN) / (1 - MOST_SPACING - 2 * MARGIN)
        profile = torch.sin(fade.clamp(0, 1) * torch.pi / 2) ** 2 + _IN_MARGIN
        total = torch.zeros(self.length, dtype=torch.float64)
        for index in range(len(self.starts)):
            total.index_add_(0, self.indices(index), profile)
        return torch.stack([profile / total[self.indices(i)] for i in range(len(self.starts))]).float()

    def enlarged(self, factor: int) -> Cover:
        """The same windows, `factor` positions for each."""
        return Cover(
            self.length * factor, tuple(start * factor for start in self.starts), self.window * factor
        )


def cover(length: int, window: int, *, wrap: bool = False, shift: float = 0.0) -> Cover:
    """Cover a side with as few evenly spaced windows as overlap by a third at least.

    Args:
        length: of the side, at least a window.
        window: length of the windows.
        wrap: whether the end meets the beginning. If not, the first and the last window are flush with the
            ends.
        shift: moves the windows (of a side that does not wrap: those between the first and the last) by this
            fraction of their spacing, -0.5 to 0.5.

    Raises:
        ValueError: the side is shorter than a window.

    Example:
        >>> cover(100, 40).starts
        (0, 20, 40, 60)
        >>> cover(100, 40, wrap=True).starts
        (0, 25, 50, 75)
    """
    if length < window:
        raise ValueError(f"a side of {length} has no room for a window of {window}")
    if wrap:
        count = math.ceil(length / (MOST_SPACING * window))
        spacing = length / count
        starts = [round((index + shift) * spacing) % length for index in range(count)]
    else:
        count = math.ceil((length - window) / (MOST_SPACING * window)) + 1
        spacing = (length - window) / max(count - 1, 1)
        inner = [round((index + shift) * spacing) for index in range(1, count - 1)]
        starts = [0, *inner, length - window][:count]
    return Cover(length, tuple(starts), window)


Place = tuple[int, int]
"""A window of a grid: its row and column, counted in windows."""


@dataclass(frozen=True)
class Grid:
    """Windows over a picture: a cover of its rows times one of its columns. Weights add up to one
    everywhere."""

    rows: Cover
    columns: Cover

    @classmethod
    def over(
        cls,
        height: int,
        width: int,
        window: int,
        *,
        wrap: bool = False,
        shifts: tuple[float, float] = (0.0, 0.0),
    ) -> Grid:
        """Square windows, or as large as the picture where it is smaller; `wrap` is of the columns alone."""
        return cls(
            cover(height, min(window, height), shift=shifts[0]),
            cover(width, min(window, width), wrap=wrap, shift=shifts[1]),
        )

    @property
    def places(self) -> list[Place]:
        """All windows, row by row."""
        return [
            (row, column)
            for row in range(len(self.rows.starts))
            for column in range(len(self.columns.starts))
        ]

    def enlarged(self, factor: int) -> Grid:
        """The same windows on a picture `factor` times as large."""
        return Grid(self.rows.enlarged(factor), self.columns.enlarged(factor))

    def part(self, place: Place, picture: Float[Tensor, "m c height width"]) -> Float[Tensor, "m c h w"]:
        """What a window holds."""
        rows, columns = self._indices(place, picture)
        return picture[:, :, rows, columns]

    def weights(self, place: Place) -> Float[Tensor, "h w"]:
        """A window's weights."""
        return torch.outer(self.rows.weights[place[0]], self.columns.weights[place[1]])

    def add(
        self, place: Place, part: Float[Tensor, "c h w"], into: Float[Tensor, "1 c height width"]
    ) -> None:
        """Add what a window holds to a picture, weighted."""
        rows, columns = self._indices(place, into)
        into[0][:, rows, columns] += self.weights(place).to(part) * part

    def _indices(self, place: Place, picture: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self.rows.indices(place[0]), self.columns.indices(place[1])
        return rows[:, None].to(picture.device), columns.to(picture.device)
