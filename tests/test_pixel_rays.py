"""Rays from a table of lenses are those that nerfstudio solves for."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from csd_nerf.pixel_rays import PixelRays


def cameras(kind: CameraType = CameraType.PERSPECTIVE, **more: torch.Tensor) -> Cameras:
    """Six of two lenses and two sizes, distorted, each turned elsewhere."""
    torch.manual_seed(0)
    poses = torch.linalg.qr(torch.randn(6, 3, 3)).Q
    second = torch.tensor([0, 1, 0, 0, 1, 1])
    return Cameras(
        camera_to_worlds=torch.cat([poses, torch.randn(6, 3, 1)], dim=2),
        fx=30.0 + 4.0 * second[:, None],
        fy=31.0 + 4.0 * second[:, None],
        cx=12.5 + second[:, None],
        cy=9.0 + second[:, None],
        height=(18 + 2 * second)[:, None],
        width=(25 + 2 * second)[:, None],
        distortion_params=torch.tensor([0.12, -0.05, 0.0, 0.0, 0.002, -0.003]) * (1 + second[:, None]),
        camera_type=kind,
        **more,
    )


@pytest.mark.parametrize(
    ("kind", "more", "solved"),
    [
        (CameraType.PERSPECTIVE, {}, True),
        (CameraType.FISHEYE, {}, True),
        (CameraType.EQUIRECTANGULAR, {}, False),
        (CameraType.PERSPECTIVE, {"times": torch.linspace(0, 1, 6)[:, None]}, False),
    ],
)
def test_equal_nerfstudios(kind: CameraType, more: dict[str, torch.Tensor], solved: bool) -> None:
    of = cameras(kind, **more)
    rays = PixelRays(of)
    assert rays._solved == solved
    camera = torch.randint(6, (200,))
    row = (torch.rand(200) * of.height[camera, 0]).long()
    column = (torch.rand(200) * of.width[camera, 0]).long()
    wanted = of.generate_rays(camera[:, None], coords=torch.stack([row, column], dim=1) + 0.5)
    found = rays(camera, row, column)
    for name in ("origins", "directions", "pixel_area", "camera_indices", "times"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(found.metadata["directions_norm"], wanted.metadata["directions_norm"])
    view, whole = rays.of_view(1), of.generate_rays(1, keep_shape=True)
    assert view.shape == whole.shape == (20, 27)
    torch.testing.assert_close(view.directions, whole.directions, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(view.metadata["directions_norm"], whole.metadata["directions_norm"])


def test_half_precision_is_for_networks_alone() -> None:
    rays = PixelRays(cameras())
    at = torch.arange(6), torch.arange(6), torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        found = rays(*at)
    assert torch.equal(found.directions, rays(*at).directions) and found.directions.dtype == torch.float32
