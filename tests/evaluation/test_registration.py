"""Shift and zoom of an edit against its source: motions put in are measured, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csd_nerf.evaluation.figures import Figures
from csd_nerf.evaluation.measure import DrawnEdit, Networks, measure
from csd_nerf.evaluation.neighbours import Baseline
from csd_nerf.evaluation.registration import Registration, registration
from csd_nerf.evaluation.reprojection import PosedPictures
from csd_nerf.evaluation.weights import Unavailable
from csd_nerf.priors import Prior
from csd_nerf.scenes.operators import OPERATORS, TINTS
from csd_nerf.scenes.still_life import orbit_cameras, render

EDITS = {**{name: operator.apply for name, operator in OPERATORS.items()}, **TINTS}
SIZE, FINER = 128, 4


@pytest.fixture(scope="module")
def large() -> Tensor:
    """Two views of the still life (2, 3, 512, 512), `FINER` times as large as they are measured."""
    views = [render(camera, samples_per_side=1).rgb for camera in orbit_cameras(2, size=SIZE * FINER)]
    return torch.stack([torch.from_numpy(view).permute(2, 0, 1) for view in views]).float()


def seen(large: Tensor, right: float = 0, down: float = 0, zoom: float = 1) -> Tensor:
    """The views (2, 3, 128, 128), moved before they are reduced: no pixel of theirs is interpolated."""
    matrix = [[1 / zoom, 0, -2 * right / SIZE / zoom], [0, 1 / zoom, -2 * down / SIZE / zoom]]
    grid = F.affine_grid(torch.tensor([matrix] * len(large)), list(large.shape), align_corners=False)
    moved = F.grid_sample(large, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return F.avg_pool2d(moved, FINER).clamp(0, 1)


def check(found: Registration, right: float, down: float, zoom: float, zoom_tolerance: float = 0.001) -> None:
    """Measured to 0.1 pixels and 0.1 %, or another part."""
    for figures, truth, tolerance in (
        (found.right, right, 0.1),
        (found.down, down, 0.1),
        (found.zoom, zoom, zoom_tolerance),
    ):
        torch.testing.assert_close(figures, torch.full_like(figures, truth), atol=tolerance, rtol=0)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_motion_is_measured_whatever_the_edit(edit: Callable[[Tensor], Tensor], large: Tensor) -> None:
    source = seen(large)
    check(registration(edit(source), source), 0, 0, 1)
    check(registration(edit(seen(large, right=2, zoom=1.01)), source), 2, 0, 1.01)
    check(registration(edit(seen(large, right=-0.3, down=1.4, zoom=0.985)), source), -0.3, 1.4, 0.985)


def test_motion_is_measured_through_the_autoencoder(large: Tensor, tiny_prior: Prior) -> None:
    source, edited = seen(large), EDITS["night"](seen(large, right=2, zoom=1.01))
    with torch.no_grad():
        drawn = tiny_prior.decode(tiny_prior.encode(edited))
    check(registration(drawn, source), 2, 0, 1.01, zoom_tolerance=0.0025)  # its decoder draws soft edges


def test_a_picture_is_where_it_is(large: Tensor) -> None:
    source = seen(large)
    found = registration(source, source)
    assert found.shift.max() < 0.005 and (found.zoom - 1).abs().max() < 0.0003


def test_shifts_along_a_picture_that_is_not_square(large: Tensor) -> None:
    source, moved = seen(large)[..., :96], seen(large, right=3, down=-2)[..., :96]
    found = registration(moved, source)
    check(found, 3, -2, 1)
    torch.testing.assert_close(found.shift, torch.full((2,), 13**0.5), atol=0.05, rtol=0)


def test_edges_that_vanish_leave_the_others(large: Tensor) -> None:
    moved = seen(large, right=2, zoom=1.01)
    moved[..., SIZE // 2 :] = 0.5
    check(registration(moved, seen(large)), 2, 0, 1.01)


def test_edges_that_turn_from_dark_to_bright(large: Tensor) -> None:
    check(registration(1 - 0.2 * seen(large, right=2), seen(large)), 2, 0, 1)


def test_of_several_views_each_has_its_own(large: Tensor) -> None:
    source = seen(large)
    found = registration(torch.stack([source[0], seen(large, right=2)[1]]), source)
    torch.testing.assert_close(found.right, torch.tensor([0.0, 2.0]), atol=0.1, rtol=0)


def test_where_nothing_can_be_told_there_is_no_number(large: Tensor) -> None:
    source = seen(large)
    flat = torch.full_like(source, 0.5)
    across = torch.linspace(0, 1, SIZE).expand_as(source)
    stripes = (torch.arange(SIZE) // 8 % 2).float().expand_as(source)
    noise = torch.rand(source.shape)
    cases = {
        "no edges": (flat, flat),
        "none after": (flat, source),
        "none before": (source, flat),
        "hardly any": (flat + 1e-3 * noise, source),
        "a ramp": (across, across),
        "edges of one direction": (stripes.roll(3, -1), stripes),
        "noise": (noise, torch.rand(source.shape)),
        "another view": (source.flip(0), source),
        "far away": (seen(large, right=30), source),
        "much larger": (seen(large, zoom=1.1), source),
    }
    for name, (image, reference) in cases.items():
        found = registration(image, reference)
        for figures in (found.right, found.down, found.zoom, found.shift):
            assert figures.isnan().all(), name


def test_an_evaluation_leaves_out_views_that_say_nothing(large: Tensor) -> None:
    source = seen(large)
    flat = torch.full_like(source, 0.5)
    absent = Unavailable("no weights", "fetch them")

    def figures(after: Tensor) -> Figures:
        depths, camera = torch.ones(2, SIZE, SIZE), torch.eye(3).repeat(2, 1, 1)
        poses = torch.cat([camera, torch.zeros(2, 3, 1)], dim=2)
        before, edited = (PosedPictures(images, depths, poses, camera) for images in (source, after))
        edit = DrawnEdit(before, edited, count=2, short=Baseline([], []), long=Baseline([], []))
        return measure(edit, Networks(lpips=absent, dino=absent, clip=absent))

    found = figures(torch.cat([seen(large, right=2, zoom=0.99)[:1], flat[1:]]))
    shift, zoom = found["registration_shift"], found["registration_zoom"]
    assert shift.after == pytest.approx(2, abs=0.1) and zoom.after == pytest.approx(1, abs=0.1)
    assert shift.count == zoom.count == 1 and (shift.unit, zoom.unit) == ("px", "%")
    reasons = {missing.name: missing.reason for missing in figures(flat).missing}
    assert "edges" in reasons["registration_shift"] and "edges" in reasons["registration_zoom"]
