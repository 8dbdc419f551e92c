"""Windows: everything is covered, and everywhere with the same weight."""

from __future__ import annotations

import pytest
import torch

from csd_nerf.editors.windows import Grid, cover

SIZES = [(24, 24), (25, 24), (47, 24), (48, 24), (100, 24), (1000, 24), (5, 5)]
SHIFTS = [-0.5, -0.27, 0.0, 0.31, 0.4999]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("length", "window"), SIZES)
def test_weights_add_up_to_one_at_every_position(length: int, window: int, shift: float, wrap: bool) -> None:
    side = cover(length, window, wrap=wrap, shift=shift)
    total = torch.zeros(length)
    counts = torch.zeros(length)
    for index in range(len(side.starts)):
        total.index_add_(0, side.indices(index), side.weights[index])
        counts.index_add_(0, side.indices(index), torch.ones(window))
    torch.testing.assert_close(total, torch.ones(length))
    assert counts.min() >= 1
    assert (side.weights > 0).all()
    if not wrap:
        assert side.starts[0] == 0 and side.starts[-1] == length - window
        assert side.starts == tuple(sorted(side.starts))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_shift_changes_where_windows_are_but_not_how_many(wrap: bool) -> None:
    covers = [cover(100, 24, wrap=wrap, shift=shift) for shift in SHIFTS]
    assert len({len(side.starts) for side in covers}) == 1
    assert len({side.starts for side in covers}) == len(SHIFTS)


def test_over_many_shifts_every_position_is_covered_about_as_often() -> None:
    """An end is in one window every time, and nothing in many more; the weights make up for the rest."""
    counts = torch.zeros(100)
    generator = torch.Generator().manual_seed(0)
    steps = 400
    for shift in (torch.rand(steps, generator=generator) - 0.5).tolist():
        side = cover(100, 24, shift=shift)
        for index in range(len(side.starts)):
            counts[side.indices(index)] += 1 / steps
    assert counts[0] == pytest.approx(1) and counts[-1] == pytest.approx(1)
    assert counts.min() == pytest.approx(1) and counts.max() < 2.1


def test_windows_cross_the_seam_of_a_side_that_wraps() -> None:
    side = cover(60, 24, wrap=True, shift=0.2)
    crossing = [side.indices(i) for i in range(len(side.starts)) if side.starts[i] > 60 - 24]
    assert crossing and all({0, 59} <= set(indices.tolist()) for indices in crossing)


def test_a_side_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        cover(23, 24)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_grid_puts_back_together_what_it_takes_apart(wrap: bool) -> None:
    picture = torch.rand(1, 3, 40, 70)
    grid = Grid.over(40, 70, 24, wrap=wrap, shifts=(0.3, -0.4))
    again = torch.zeros_like(picture)
    for place in grid.places:
        grid.add(place, grid.part(place, picture)[0], again)
    torch.testing.assert_close(again, picture)


def test_an_enlarged_grid_has_the_same_windows() -> None:
    grid = Grid.over(40, 70, 24, wrap=True, shifts=(0.3, -0.4))
    small = torch.rand(1, 1, 40, 70)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for place in grid.places:
        part = grid.enlarged(4).part(place, large)
        torch.testing.assert_close(part[..., ::4, ::4], grid.part(place, small))
