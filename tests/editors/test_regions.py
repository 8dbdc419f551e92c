"""Regions: their weights add up to one, blend, and leave nothing out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from csd_nerf.editors.regions import bands, blended, check_count, check_masks, check_shares
from csd_nerf.errors import InputError


def two_masks() -> torch.Tensor:
    left = torch.zeros(20, 50)
    left[:, :30] = 1
    return torch.stack([left, 1 - left])


def test_bands_split_the_width_by_their_shares() -> None:
    masks = bands([0.25, 0.25, 0.5], 3, 40)
    assert masks.shape == (3, 3, 40)
    assert masks.sum(2)[:, 0].tolist() == pytest.approx([10, 10, 20])
    torch.testing.assert_close(masks.sum(0), torch.ones(3, 40))


def test_a_column_that_two_bands_share_belongs_to_both_in_part() -> None:
    assert bands([0.5, 0.5], 1, 5)[:, 0, 2].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("feather", [0, 1, 2, 7.5, 12, 1000])
def test_blended_weights_add_up_to_one(feather: float, wrap: bool) -> None:
    masks = torch.rand(3, 20, 50)
    weights = blended(masks, feather, wrap=wrap)
    torch.testing.assert_close(weights.sum(0), torch.ones(20, 50))
    assert (weights >= 0).all()


def test_without_feather_the_weights_are_the_masks() -> None:
    torch.testing.assert_close(blended(two_masks(), 0), two_masks())


def test_regions_fade_over_the_feather() -> None:
    row = blended(two_masks(), 12)[0, 10]
    assert (row[:-1] >= row[1:]).all()
    fading = ((row > 1e-6) & (row < 1 - 1e-6)).nonzero().flatten()
    assert fading.min() == 24 and fading.max() == 35
    assert row[29:31].mean() == pytest.approx(0.5)
    assert float((row[:-1] - row[1:]).max()) < 0.2  # no step


def test_on_a_sphere_the_last_band_fades_into_the_first() -> None:
    masks = bands([0.5, 0.5], 20, 50)
    seam, flat = blended(masks, 10, wrap=True)[0, 0], blended(masks, 10)[0, 0]
    assert flat[0] == 1 and flat[-1] == 0
    assert (seam[0] + seam[-1]).item() == pytest.approx(1, abs=1e-5) and 0.4 < seam[0] < 0.7


@pytest.mark.parametrize(
    ("check", "parts"),
    [
        (lambda: check_count(["a", "b"], 3, "bands"), ["differ in number", "2 prompts and 3 bands"]),
        (lambda: check_shares([0.4, 0.4]), ["leave pixels uncovered", "together 0.8"]),
        (lambda: check_shares([0.9, 0.4]), ["do not fit", "together 1.3"]),
        (lambda: check_shares([1.2, -0.2]), ["no width"]),
        (lambda: check_masks(list(two_masks()), 20, 51), ["mask 1 is not of the picture's size", "51 x 20"]),
        (
            lambda: check_masks([two_masks()[0]], 20, 50),
            ["uncovered", "40.0 %", "30 from the left and 0 from the top"],
        ),
    ],
)
def test_regions_that_do_not_fit_are_refused(check: Callable[[], None], parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        check()
    for part in parts:
        assert part in str(error.value)


def test_thirds_may_be_written_with_two_digits() -> None:
    check_shares([0.33, 0.33, 0.33])
