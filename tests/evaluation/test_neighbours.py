"""Which neighbours an evaluation view is compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from csd_nerf.evaluation.neighbours import parallax_degrees, with_neighbours
from csd_nerf.scenes.casting import look_at


def ring(degrees: list[float]) -> Cameras:
    """Cameras at these angles of a circle, looking at its middle through a lens that distorts."""
    eyes = [(2 * math.cos(math.radians(angle)), 2 * math.sin(math.radians(angle)), 0.0) for angle in degrees]
    poses = torch.stack([torch.from_numpy(look_at(np.array(eye), np.zeros(3))) for eye in eyes])
    return Cameras(
        poses.float(), fx=50.0, fy=50.0, cx=20.0, cy=20.0, height=40, width=40,
        distortion_params=torch.full((len(eyes), 6), 0.1),
    )  # fmt: skip


def test_parallax_is_the_angle_at_the_point() -> None:
    positions = torch.tensor([[1.0, 0, 0], [0, 3.0, 0], [-2.0, 0, 0]])
    wanted = torch.tensor([[0.0, 90, 180], [90, 0, 90], [180, 90, 0]]).double()
    torch.testing.assert_close(parallax_degrees(positions, torch.zeros(3)), wanted)


def test_neighbours_are_those_nearest_to_the_wanted_parallax() -> None:
    chosen = with_neighbours(ring([0, 50]), ring([-3, 7, 20, 28, 41]))
    assert chosen.count == 2
    assert chosen.short.degrees == pytest.approx([7, 9], abs=1e-3)
    assert chosen.long.degrees == pytest.approx([28, 30], abs=1e-3)
    # Evaluation views first, then every neighbour once, and nothing else.
    angles = torch.rad2deg(torch.atan2(*chosen.cameras.camera_to_worlds[:, :2, 3].flip(1).unbind(1)))
    assert angles.tolist() == pytest.approx([0, 50, 7, 20, 28, 41], abs=1e-3)
    assert [angles[neighbour].round().item() for _, neighbour in chosen.short.pairs] == [7, 41]
    assert chosen.cameras.distortion_params is None


def test_a_neighbour_may_be_an_evaluation_view_but_not_the_view_itself() -> None:
    chosen = with_neighbours(ring([0, 8]), ring([0, 8, 30]))
    assert chosen.short.degrees == pytest.approx([8, 8], abs=1e-3)
    assert all(view != neighbour for view, neighbour in chosen.short.pairs)


def test_a_single_viewpoint_has_no_neighbours() -> None:
    chosen = with_neighbours(ring([10]), ring([10]))
    assert not chosen.short.pairs and not chosen.long.pairs and len(chosen.cameras) == 1
