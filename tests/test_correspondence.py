"""Where views show the same points: planes and occluders of known geometry, and what is carried by them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csd_nerf.distillation import svgd
from csd_nerf.distillation.correspondence import Correspondence, find_correspondence
from csd_nerf.distillation.transport import stein_direction, stein_kernel

SIZE, FOCAL = 12, 12.0


def rays(size: int = SIZE, focal: float = FOCAL) -> Tensor:
    """Unit directions (h, w, 3) of a camera that looks along -z."""
    middles = torch.arange(size) + 0.5 - size / 2
    y, x = torch.meshgrid(-middles / focal, middles / focal, indexing="ij")
    directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
    return directions / directions.norm(dim=-1, keepdim=True)


def to_plane(origin: Tensor, directions: Tensor, normal: Tensor, offset: float) -> Tensor:
    """Distances (h, w) along the rays to the plane `normal . x = offset`."""
    return (offset - origin @ normal) / (directions @ normal)


def seen_by(origins: list[list[float]], normal: list[float], offset: float) -> Correspondence:
    """Of cameras that all look along -z at one plane."""
    places, directions = torch.tensor(origins), rays()
    distances = [to_plane(place, directions, torch.tensor(normal), offset) for place in places]
    return find_correspondence(places, directions.expand(len(places), -1, -1, -1), torch.stack(distances))


def test_a_step_aside_before_a_wall_moves_every_latent_by_as_many_columns() -> None:
    distance, columns = 6.0, 3
    found = seen_by([[0, 0, 0], [columns * distance / FOCAL, 0, 0]], [0.0, 0.0, 1.0], -distance)
    numbers = torch.arange(SIZE * SIZE).view(SIZE, SIZE)
    seen = found.seen[0, 1].view(SIZE, SIZE)
    assert seen[:, columns:].all() and not seen[:, :columns].any()
    assert torch.equal(found.cells[0, 1].view(SIZE, SIZE)[:, columns:], numbers[:, :-columns])
    back = found.seen[1, 0].view(SIZE, SIZE)
    assert back[:, :-columns].all() and not back[:, -columns:].any()
    assert torch.equal(found.cells[1, 0].view(SIZE, SIZE)[:, :-columns], numbers[:, columns:])


def test_points_of_a_slanted_wall_are_found_where_they_project_to() -> None:
    origins = [[0.0, 0.0, 0.0], [0.9, -0.4, 0.7]]
    normal, offset = [0.6, 0.0, 0.8], -5.0
    found = seen_by(origins, normal, offset)
    directions, place = rays(), torch.tensor(origins[1])
    distances = to_plane(torch.tensor(origins[0]), directions, torch.tensor(normal), offset)
    local = directions * distances[..., None] - place
    column = SIZE / 2 - FOCAL * local[..., 0] / local[..., 2]
    row = SIZE / 2 + FOCAL * local[..., 1] / local[..., 2]
    inside = (column > 0.2) & (column < SIZE - 0.2) & (row > 0.2) & (row < SIZE - 0.2)
    assert found.seen[0, 1].view(SIZE, SIZE)[inside].all() and inside.sum() > 60
    # Half a latent from there, and the corners' are smaller as angles.
    cells = found.cells[0, 1].view(SIZE, SIZE)[inside]
    assert (cells % SIZE + 0.5 - column[inside]).abs().max() < 0.6
    assert (cells // SIZE + 0.5 - row[inside]).abs().max() < 0.6


def test_what_something_hides_is_not_seen() -> None:
    origins, directions = torch.tensor([[0.0, 0, 0], [1.5, 0, 0]]), rays()
    wall = torch.stack([to_plane(origin, directions, torch.tensor([0.0, 0, 1]), -6.0) for origin in origins])
    hidden = wall.clone()
    hidden[1, :, 3:6] /= 2  # before the second camera alone
    open_view, blocked = (
        find_correspondence(origins, directions.expand(2, -1, -1, -1), distances)
        for distances in (wall, hidden)
    )
    lost = open_view.seen[0, 1] & ~blocked.seen[0, 1]
    columns = open_view.cells[0, 1][lost] % SIZE
    assert set(columns.tolist()) == {3, 4, 5} and lost.sum() == 3 * SIZE


@pytest.fixture
def alike() -> Correspondence:
    return seen_by([[0.0, 0.0, 0.0]] * 3, [0.0, 0.6, 0.8], -4.0)


def test_from_one_place_it_is_shared_noise_and_the_plain_formula(alike: Correspondence) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, scores = torch.randn(2, 3, 4, SIZE, SIZE, generator=generator)
    assert torch.equal(alike.carry_noise(noise), noise[:1].expand_as(noise))
    assert torch.equal(alike.carry(scores), scores[None].expand(3, -1, -1, -1, -1))
    kernel = stein_kernel(noise, "median", "imq")
    carried = stein_direction(scores, noise, *kernel, True, lambda vectors: vectors, alike)
    torch.testing.assert_close(carried, svgd(scores, noise, kernel="imq"), rtol=0, atol=1e-6)


@pytest.fixture
def walking() -> Correspondence:
    """Aside, and towards the wall, where one latent of the others becomes several."""
    places = [[0.0, 0.0, 0.0], [1.2, 0.3, 0.0], [0.5, 0.0, -3.0], [0.0, 0.4, 1.0]]
    return seen_by(places, [0.2, 0.0, 0.98], -6.0)


def test_carried_noise_is_as_white_as_it_was_and_the_same_where_it_was_carried(
    walking: Correspondence,
) -> None:
    numbers = torch.arange(4.0 * SIZE * SIZE).view(4, 1, SIZE, SIZE)
    carried = walking.carry_noise(numbers).flatten(1)
    own = numbers.flatten(1)
    for view in range(4):  # a choice of independent numbers, none twice
        assert len(carried[view].unique()) == SIZE * SIZE
    assert torch.equal(carried[0], own[0])
    for view in range(1, 4):
        taken = carried[view] != own[view]
        assert taken.float().mean() > 0.2
        earlier = [
            walking.seen[view, before] & (carried[before][walking.cells[view, before]] == carried[view])
            for before in range(view)
        ]
        assert torch.stack(earlier).any(0)[taken].all()


def test_carried_noise_has_variance_one_and_no_correlation_within_a_view(walking: Correspondence) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [walking.carry_noise(torch.randn(4, 1, SIZE, SIZE, generator=generator)) for _ in range(600)]
    )
    assert drawn.mean().abs() < 0.01 and (drawn.var(0) - 1).abs().mean() < 0.06
    beside = (drawn[..., 1:] * drawn[..., :-1]).mean(0)
    assert beside.abs().max() < 0.25  # several deviations of 1 / sqrt(600)


def test_scores_are_carried_where_they_are_seen_and_kept_elsewhere() -> None:
    columns, distance = 5, 6.0
    found = seen_by([[0, 0, 0], [columns * distance / FOCAL, 0, 0]], [0.0, 0.0, 1.0], -distance)
    scores = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    carried = found.carry(scores)
    assert torch.equal(carried[0, 1, :, :, columns:], scores[1, :, :, :-columns])
    assert torch.equal(carried[0, 1, :, :, :columns], scores[0, :, :, :columns])
    assert torch.equal(carried[0, 0], scores[0]) and torch.equal(carried[1, 1], scores[1])
