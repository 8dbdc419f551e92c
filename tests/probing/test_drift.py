"""The test of a probe: what it finds, and how rarely chance does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csd_nerf.probing.drift import (
    ATTRIBUTES,
    LEAST_DRIFT,
    attributes,
    beyond_colours,
    by_place,
    chances,
    everywhere,
    regions,
)
from csd_nerf.scenes.operators import OPERATORS


def skies(count: int = 12, size: int = 24, seed: int = 0) -> Tensor:
    """Pictures that are brighter above, as photos are, each with things of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    light = torch.linspace(0.5, 0.0, size)[:, None]
    return (0.5 * pictures + light).clamp(0, 1)


def redder_above(pictures: Tensor, by: float = 0.1) -> Tensor:
    after = pictures.clone()
    after[:, 0, : pictures.shape[2] // 3] += by
    return after


@pytest.mark.parametrize("name", ["night", "winter", "autumn", "sepia"])
def test_what_colours_explain_is_no_drift_though_skies_are_bright(name: str) -> None:
    pictures = skies()
    change = OPERATORS[name].apply(pictures) - pictures
    top = attributes(change)[:, :, :8].mean() - attributes(change)[:, :, 8:].mean()
    drifts = by_place(change, pictures, regions(24))
    assert not [drift.in_words() for drift in drifts if drift.found]
    assert max(abs(drift.mean) for drift in drifts) < LEAST_DRIFT / 2
    assert name == "autumn" or abs(top) > 0.01  # looked at without the colours, places do differ


def test_a_drift_of_one_place_is_found_under_an_edit() -> None:
    pictures = skies()
    change = redder_above(OPERATORS["winter"].apply(pictures)) - pictures
    found = [drift for drift in by_place(change, pictures, regions(24)) if drift.found]
    assert found
    largest = max(found, key=lambda drift: abs(drift.mean))
    assert (largest.region, largest.attribute) == ("the top", "red")
    assert largest.in_words().startswith("the top becomes redder by 0.")


def test_a_region_by_masks_is_found() -> None:
    pictures, generator = skies(), torch.Generator().manual_seed(1)
    masks = (torch.rand(len(pictures), 24, 24, generator=generator) < 0.3).float()
    change = 0.1 * masks[:, None].expand_as(pictures)
    (brightness, *_) = by_place(change, pictures, {"the masks": masks})
    assert brightness.found and brightness.attribute == "brightness"
    assert brightness.mean == pytest.approx(0.1, abs=0.01)


def test_chance_is_found_as_seldom_as_the_level_says() -> None:
    generator = torch.Generator().manual_seed(0)
    smallest = torch.stack([chances(torch.randn(12, 15, generator=generator)).min() for _ in range(300)])
    assert 0.02 < (smallest < 0.05).float().mean() < 0.09  # over all 15 questions together
    assert (smallest < 0.01).float().mean() < 0.03


def test_the_test_is_exact_for_few_pictures() -> None:
    """All of eight alike: but two of 256 patterns of signs are as regular."""
    assert chances(torch.full((8, 1), 0.1) + 0.001 * torch.arange(8.0)[:, None]).item() == 2 / 256


def test_drift_of_whole_pictures_is_signed_by_attribute() -> None:
    change = torch.zeros(9, 3, 4, 4)
    change[:, 2] = 0.2 + 0.01 * torch.rand(9, 4, 4)
    drifts = dict(zip(ATTRIBUTES, everywhere(change), strict=True))
    assert drifts["blue"].mean > 0.15 and drifts["red"].mean < 0
    assert drifts["blue"].in_words().startswith("the picture becomes bluer")


def test_nothing_is_left_of_a_polynomial_of_colours() -> None:
    pictures = skies(8)
    red, green, blue = pictures.unbind(1)
    change = torch.stack([red * green - 0.2, 0.3 * blue, red.square() - green], dim=1)
    assert beyond_colours(change, pictures).abs().max() < 1e-4
