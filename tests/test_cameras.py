from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from csd_nerf.cameras import (
    CameraSampler,
    PathSampler,
    closest_point,
    fit_cameras,
    fit_photo,
    pinhole_cameras,
    poses_around,
    replaced,
    turntable_cameras,
    view_size,
)
from csd_nerf.errors import InputError


def ring(count: int, *, heights: list[int] | int = 40, widths: list[int] | int = 60) -> Cameras:
    """Cameras on a circle of radius 2 at height 0.5, looking at the origin."""
    angles = torch.arange(count) * (2 * torch.pi / count)
    eyes = torch.stack([2 * angles.cos(), 2 * angles.sin(), torch.full((count,), 0.5)], 1)
    back = torch.nn.functional.normalize(eyes, dim=1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).expand_as(back), back), dim=1
    )
    poses = torch.stack([right, torch.linalg.cross(back, right), back, eyes], -1)
    height = torch.as_tensor(heights).expand(count).contiguous()
    width = torch.as_tensor(widths).expand(count).contiguous()
    return Cameras(
        camera_to_worlds=poses, fx=50.0, fy=50.0, cx=width / 2.0, cy=height / 2.0, height=height, width=width
    )


def test_view_size_keeps_the_aspect_and_suits_the_autoencoder() -> None:
    assert view_size(ring(3), 32, 8) == (32, 48)
    assert view_size(ring(3, heights=60, widths=40), 32, 8) == (48, 32)
    with pytest.raises(InputError, match=r"multiple of 8[\s\S]*30[\s\S]*24` or 32"):
        view_size(ring(3), 30, 8)


def test_fitted_cameras_see_what_the_fitted_photo_shows() -> None:
    """The ray through a photo's pixel and the ray through the fitted photo's pixel are the same one."""
    cameras = ring(2, heights=[40, 80], widths=[60, 80])
    fitted = fit_cameras(cameras, 20, 30)
    for index, (height, width) in enumerate([(40, 60), (80, 80)]):
        scale = max(20 / height, 30 / width)
        rows, columns = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(30) + 0.5, indexing="ij")
        full = torch.stack(
            [rows / scale + (height - 20 / scale) / 2, columns / scale + (width - 30 / scale) / 2], -1
        )
        expected = cameras.generate_rays(camera_indices=index, coords=full).directions
        actual = fitted.generate_rays(
            camera_indices=index, coords=torch.stack([rows, columns], -1)
        ).directions
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_fitted_photo_is_the_centred_crop() -> None:
    photo = torch.zeros(8, 16, 3)
    photo[:, 4:12] = torch.linspace(0, 1, 8)[None, :, None]
    torch.testing.assert_close(fit_photo(photo, 8, 8), photo[:, 4:12].permute(2, 0, 1))
    assert fit_photo(torch.rand(37, 91, 4), 16, 24).shape == (3, 16, 24)


def test_sampler_draws_distinct_cameras_from_all_sides_and_all_equally_often() -> None:
    cameras = ring(12)
    sampler = CameraSampler(cameras, 4, 0, "--views")
    steps = [sampler(step) for step in range(12)]
    assert all(len(set(indices)) == 4 for indices in steps)
    assert set(Counter(index for indices in steps for index in indices).values()) == {4}
    for indices in steps:  # one camera in each quarter of the circle that the sectors cut
        sectors = [next(n for n, s in enumerate(sampler.sectors) if index in s) for index in indices]
        assert sectors == [0, 1, 2, 3]
    assert [CameraSampler(cameras, 4, 0, "--views")(step) for step in range(12)] == steps
    assert [CameraSampler(cameras, 4, 1, "--views")(step) for step in range(12)] != steps


def test_sampler_refuses_more_views_than_cameras() -> None:
    with pytest.raises(InputError, match=r"between 1 and 3[\s\S]*got: +4[\s\S]*`--views 3`"):
        CameraSampler(ring(3), 4, 0, "--views")


def test_paths_go_on_to_neighbours_and_share_no_camera() -> None:
    cameras = ring(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    mixed = replaced(cameras, camera_to_worlds=cameras.camera_to_worlds[order])
    sampler = PathSampler(mixed, 3, 4, 0, "--paths")
    steps = [sampler(step) for step in range(9)]
    for indices in steps:
        assert len(set(indices)) == 12
        alone = order[indices].view(3, 4)  # numbers on the circle
        turns = (alone.diff(dim=1) + 11) % 23 - 11
        # One way round until another path is met.
        assert (turns[:, 0].abs() == 1).all() and turns.abs().max() <= 8
        assert (turns.abs() == 1).float().mean() > 0.6
    assert [PathSampler(mixed, 3, 4, 0, "--paths")(step) for step in range(9)] == steps
    assert PathSampler(mixed, 3, 1, 0, "--paths")(5) == CameraSampler(mixed, 3, 0, "--paths")(5)


def test_paths_refuse_more_views_than_cameras() -> None:
    with pytest.raises(InputError, match=r"at most 2 of 4 views[\s\S]*got: +3[\s\S]*`--paths 2`"):
        PathSampler(ring(11), 3, 4, 0, "--paths")


def test_turntable_looks_at_what_the_capture_looks_at() -> None:
    turntable = turntable_cameras(ring(9), frames=8, height=20, width=30)
    positions, forward = turntable.camera_to_worlds[:, :, 3], -turntable.camera_to_worlds[:, :, 2]
    distances = positions.norm(dim=1)
    torch.testing.assert_close(distances, torch.full((8,), (4 + 0.25) ** 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(positions + forward * distances[:, None], torch.zeros(8, 3), atol=1e-3, rtol=0)


def posed(eyes: torch.Tensor, towards: torch.Tensor, up: torch.Tensor) -> Cameras:
    """Cameras (N) at `eyes` that look along `towards`."""
    back = torch.nn.functional.normalize(-towards, dim=1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up.expand_as(back), back), dim=1)
    poses = torch.stack([right, torch.linalg.cross(back, right), back, eyes], -1)
    return replaced(ring(len(eyes)), camera_to_worlds=poses)


def wall(jitter: float, generator: torch.Generator) -> Cameras:
    """A grid of cameras that all look along +x, give or take."""
    y, z = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-0.4, 0.4, 4), indexing="ij")
    eyes = torch.stack([torch.zeros(24), y.flatten(), z.flatten()], 1)
    off = jitter * torch.randn(24, 3, generator=generator)
    return posed(eyes, torch.tensor([1.0, 0, 0]) + off, torch.tensor([0.0, 0, 1]))


def arc(degrees: float, generator: torch.Generator) -> Cameras:
    """Cameras about a face: an arc of radius 2 at three heights, with hands that shake."""
    angles = torch.linspace(-degrees / 2, degrees / 2, 30).deg2rad()
    heights = torch.tensor([-0.4, 0.0, 0.4]).repeat(10)
    eyes = torch.stack([2 * angles.cos(), 2 * angles.sin(), heights], 1)
    shaken = 0.05 * torch.randn(30, 3, generator=generator)
    return posed(eyes, -eyes + shaken, torch.tensor([0.0, 0, 1]))


def from_above(jitter: float, generator: torch.Generator) -> Cameras:
    """A drone's: a grid of cameras that all look down, give or take."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
    eyes = torch.stack([x.flatten(), y.flatten(), torch.ones(25)], 1)
    off = jitter * torch.randn(25, 3, generator=generator)
    return posed(eyes, torch.tensor([0.0, 0, -1]) + off, torch.tensor([0.0, 1, 0]))


@pytest.mark.parametrize(
    ("capture", "extent"),
    [
        (partial(wall, 0.0), 2.0),
        (partial(wall, 0.001), 2.0),
        (partial(wall, 0.1), 2.0),
        (partial(arc, 40), 1.3),
        (partial(arc, 180), 4.0),
        (partial(arc, 230), 4.0),
        (partial(from_above, 0.0), 2.0),
        (partial(from_above, 0.05), 2.0),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_before_what_has_one_side_a_turntable_sways(
    capture: Callable[[torch.Generator], Cameras], extent: float, seed: int
) -> None:
    """It goes to and fro past most of the cameras, never far from one that looks the same way."""
    cameras = capture(torch.Generator().manual_seed(seed))
    poses = turntable_cameras(cameras, frames=40, height=20, width=30).camera_to_worlds
    places, forward = poses[:, :, 3], -poses[:, :, 2]
    apart = torch.cdist(places, cameras.camera_to_worlds[:, :3, 3])
    same_way = forward @ -cameras.camera_to_worlds[:, :3, 2].T
    near = apart.min(1)
    assert near.values.max() < 0.45
    assert same_way.max(1).values.min() > math.cos(math.radians(12))
    assert same_way.gather(1, near.indices[:, None]).min() > math.cos(math.radians(30))
    swept = (places.amax(0) - places.amin(0)).max()
    assert 0.6 * extent < swept < 1.05 * extent
    steps = (places - places.roll(1, 0)).norm(dim=1)
    assert steps.max() < 0.3 * extent  # closed, and without a leap
    ups = poses[:, :, 1] @ cameras.camera_to_worlds[0, :3, 1]
    assert ups.min() > 0.8  # upright


def test_around_what_is_seen_from_all_sides_a_turntable_goes_round() -> None:
    for height in (0.1, 0.5, 3.0):
        cameras = replaced(ring(7))
        eyes = cameras.camera_to_worlds[:, :3, 3].clone()
        eyes[:, 2] = height
        turntable = turntable_cameras(posed(eyes, -eyes, torch.tensor([0.0, 0, 1])), 12, 20, 30)
        azimuths = torch.atan2(*turntable.camera_to_worlds[:, [1, 0], 3].T).sort().values
        torch.testing.assert_close(torch.diff(azimuths), torch.full((11,), torch.pi / 6), atol=1e-3, rtol=0)


def test_replaced_changes_what_is_named_and_nothing_else() -> None:
    cameras = replaced(
        ring(3),
        distortion_params=torch.full((3, 6), 0.1),
        times=torch.tensor([[1.0], [2], [3]]),
        metadata={"lens": "wide"},
    )
    moved = replaced(cameras, camera_to_worlds=cameras.camera_to_worlds + 1)
    torch.testing.assert_close(moved.camera_to_worlds, cameras.camera_to_worlds + 1)
    for field in {field.name for field in dataclasses.fields(cameras)} - {"camera_to_worlds", "metadata"}:
        assert torch.equal(getattr(moved, field), getattr(cameras, field)), field
    assert moved.metadata == cameras.metadata == {"lens": "wide"}


def test_pinhole_cameras_are_joined_without_their_lenses() -> None:
    fisheye = replaced(ring(2), distortion_params=torch.full((2, 6), 0.1), camera_type=CameraType.FISHEYE)
    joined = pinhole_cameras(fisheye, ring(3))
    assert len(joined) == 5 and joined.distortion_params is None
    assert joined.camera_type.unique().tolist() == [CameraType.PERSPECTIVE.value]
    torch.testing.assert_close(joined.camera_to_worlds[:2], fisheye.camera_to_worlds)


def test_closest_point_is_where_axes_meet() -> None:
    wanted = torch.tensor([0.3, -0.2, 1.0])
    origins = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(closest_point(origins, 3 * (wanted - origins)), wanted)


def test_of_parallel_axes_the_closest_point_is_near_the_origin() -> None:
    """A row of cameras that look one way, up to the rounding of their poses."""
    origins = torch.tensor([[5.0, 1, 0], [5, 3, 0], [5, 2, 0]])
    noise = 1e-7 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    found = closest_point(origins, torch.tensor([[-1.0, 0, 0]]).expand(3, 3) + noise)
    torch.testing.assert_close(found, torch.tensor([0.0, 2, 0]), atol=1e-4, rtol=0)


def test_poses_look_at_their_target_from_the_poles_too() -> None:
    target = torch.tensor([1.0, 2, 3])
    poses = poses_around(
        target,
        distance=torch.tensor([2.0, 2, 2]),
        elevation=torch.tensor([0.0, torch.pi / 2, -torch.pi / 2]),
        azimuth=torch.tensor([torch.pi / 2, 0, 0]),
    )
    torch.testing.assert_close(poses[:, :, 3] - 2 * poses[:, :, 2], target.expand(3, 3))
    torch.testing.assert_close(poses[0, :, 3], torch.tensor([1.0, 4, 3]))
    rotations = poses[:, :, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(3))
