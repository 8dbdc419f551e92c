"""The reprojection error on scenes whose colours and depths are known exactly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from csd_nerf.evaluation.reprojection import (
    PosedPictures,
    axis_depth,
    change_of,
    contrast,
    reprojection_error,
    warp,
)
from csd_nerf.scenes.casting import look_at
from csd_nerf.scenes.operators import TINT_HUES, tint
from csd_nerf.scenes.still_life import orbit_cameras, render


def camera_matrices(poses: list[np.ndarray], focal: float, size: int) -> tuple[Tensor, Tensor]:
    matrices = torch.from_numpy(np.stack(poses)).float()
    lens = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    return matrices, lens.expand(len(poses), 3, 3)


def plane_views(size: int) -> PosedPictures:
    """Three views of the plane z = 0 with a smooth pattern on it; colours and depths in closed form."""
    positions = [(0.0, -2.0, 1.6), (0.5, -1.9, 1.5), (-0.8, -1.6, 1.8)]
    poses = [look_at(np.array(position), np.zeros(3)) for position in positions]
    matrices, intrinsics = camera_matrices(poses, 1.6 * size, size)
    images, depths = [], []
    centre = torch.arange(size) + 0.5
    rows, columns = torch.meshgrid(centre, centre, indexing="ij")
    for matrix in matrices:
        x, y = (columns - size / 2) / (1.6 * size), (size / 2 - rows) / (1.6 * size)
        directions = torch.stack([x, y, -torch.ones_like(x)], dim=-1) @ matrix[:, :3].T
        depth = -matrix[2, 3] / directions[..., 2]  # where the ray of depth 1 meets z = 0
        points = matrix[:, 3] + depth[..., None] * directions
        u, v = 5 * points[..., 0], 5 * points[..., 1]
        images.append(torch.stack([u.sin(), v.cos(), (u + v).sin()]) / 2 + 0.5)
        depths.append(depth)
    return PosedPictures(torch.stack(images), torch.stack(depths), matrices, intrinsics)


PLANE_PAIRS = [(0, 1), (1, 0), (0, 2), (2, 1)]


def test_zero_on_a_textured_plane_up_to_interpolation() -> None:
    coarse, fine = (reprojection_error(plane_views(size), PLANE_PAIRS, tolerance=0.01) for size in (64, 128))
    assert coarse.coverage.min() > 0.6
    assert coarse.errors.max() < 2e-3
    # Bilinear interpolation is of second order: half the pixel, a quarter of the error.
    assert torch.all(fine.errors < 0.3 * coarse.errors)


def test_a_wrong_depth_or_a_wrong_camera_shows() -> None:
    views = plane_views(64)
    right = reprojection_error(views, PLANE_PAIRS).errors.mean()
    deeper = dataclasses.replace(views, depths=1.1 * views.depths)
    turned = dataclasses.replace(views, camera_to_worlds=views.camera_to_worlds[[1, 2, 0]])
    for wrong in (deeper, turned):
        assert reprojection_error(wrong, PLANE_PAIRS, tolerance=1.0).errors.mean() > 20 * right


@pytest.fixture(scope="module")
def still_life() -> PosedPictures:
    cameras = orbit_cameras(36, size=96)[:6:3]  # neighbours on one ring, thirty degrees apart
    cameras += orbit_cameras(36, size=96)[6:7]
    pictures = [render(camera) for camera in cameras]
    matrices, intrinsics = camera_matrices(
        [camera.camera_to_world for camera in cameras], cameras[0].focal, cameras[0].width
    )
    images = torch.stack([torch.from_numpy(picture.rgb).permute(2, 0, 1) for picture in pictures])
    distances = torch.stack([torch.from_numpy(picture.depth) for picture in pictures])
    return PosedPictures(images, axis_depth(distances, intrinsics), matrices, intrinsics)


STILL_LIFE_PAIRS = [(0, 1), (1, 0), (1, 2)]


def test_depth_along_the_axis_gives_the_points_that_rays_hit() -> None:
    (camera,) = orbit_cameras(1, size=32)
    distances = torch.from_numpy(render(camera, samples_per_side=1).depth)[None]
    _, intrinsics = camera_matrices([camera.camera_to_world], camera.focal, 32)
    rows, columns = (axis.ravel() + 0.5 for axis in np.mgrid[:32, :32])
    directions = torch.from_numpy(camera.directions(rows, columns)).reshape(3, 32, 32)
    backward = torch.from_numpy(camera.camera_to_world[:, 2])
    along = -torch.einsum("chw,c->hw", directions, backward) * distances[0]
    torch.testing.assert_close(axis_depth(distances, intrinsics)[0], along.float(), rtol=1e-5, atol=1e-5)


def test_small_on_the_still_life_because_occlusions_are_masked(still_life: PosedPictures) -> None:
    masked = reprojection_error(still_life, STILL_LIFE_PAIRS)
    unmasked = reprojection_error(still_life, STILL_LIFE_PAIRS, tolerance=math.inf)
    assert masked.coverage.min() > 0.3
    assert masked.errors.max() < 0.02
    assert torch.all(unmasked.errors > 1.5 * masked.errors)


def test_grows_with_injected_inconsistency(still_life: PosedPictures) -> None:
    def with_gain(strength: float) -> Tensor:
        gains = 1 - strength * torch.tensor([0.0, 0.5, 1.0])
        return gains.reshape(3, 1, 1, 1) * still_life.images

    def with_hue(strength: float) -> Tensor:
        # Each view drawn to a colour of its own.
        return torch.lerp(still_life.images, torch.eye(3).reshape(3, 3, 1, 1).expand(3, 3, 96, 96), strength)

    for injected in (with_gain, with_hue):
        figures = []
        for strength in (0.0, 0.05, 0.1, 0.2, 0.4):
            images = injected(strength)
            views = dataclasses.replace(still_life, images=images)
            figures.append(reprojection_error(views, STILL_LIFE_PAIRS).errors.mean() / contrast(images))
        assert figures == sorted(figures)
        assert figures[-1] > 3 * figures[0]


def test_relative_error_is_that_of_the_source_for_a_paler_scene(still_life: PosedPictures) -> None:
    views = dataclasses.replace(still_life, images=0.3 * still_life.images + 0.2)
    errors = [reprojection_error(each, STILL_LIFE_PAIRS).errors for each in (still_life, views)]
    torch.testing.assert_close(errors[1], 0.3 * errors[0])
    torch.testing.assert_close(errors[1] / contrast(views.images), errors[0] / contrast(still_life.images))


def test_ranks_the_source_before_its_exact_edit_before_edits_of_single_views(
    still_life: PosedPictures,
) -> None:
    """In one scene, a point changes alike in all views; the edits of single views differ in their hue."""
    pictures = {
        "source": still_life.images,
        "scene": tint(still_life.images, "cyan"),
        "single": torch.stack([tint(still_life.images[i], hue) for i, hue in enumerate(list(TINT_HUES)[:3])]),
    }
    views = {name: dataclasses.replace(still_life, images=images) for name, images in pictures.items()}
    errors = {
        name: float(reprojection_error(change_of(still_life, edited), STILL_LIFE_PAIRS).errors.mean())
        for name, edited in views.items()
    }
    assert 0 == errors["source"] < errors["scene"] < 0.1 * errors["single"]


def test_a_view_dependence_of_the_scene_is_no_error_of_the_change(still_life: PosedPictures) -> None:
    gains = torch.tensor([1.0, 0.8, 0.6]).reshape(3, 1, 1, 1)
    glossy = dataclasses.replace(still_life, images=gains * still_life.images)
    repainted = dataclasses.replace(
        glossy, images=glossy.images + torch.tensor([0.2, 0.0, -0.1])[:, None, None]
    )
    own = reprojection_error(repainted, STILL_LIFE_PAIRS).errors
    assert reprojection_error(change_of(glossy, repainted), STILL_LIFE_PAIRS).errors.max() < 1e-6 < own.min()


def test_what_another_view_cannot_see_is_not_known() -> None:
    views = plane_views(32)
    behind = views.camera_to_worlds.clone()
    behind[1, :, 2] *= -1  # turned round, and its x axis with it
    behind[1, :, 0] *= -1
    _, known = warp(dataclasses.replace(views, camera_to_worlds=behind), 0, 1)
    assert not known.any()
    nothing = reprojection_error(dataclasses.replace(views, camera_to_worlds=behind), [(0, 1)])
    assert nothing.errors.isnan().all() and not nothing.coverage.any()
