"""A small still life in a meadow, rendered in closed form: the scene whose true edits are known everywhere.

A ball, a gift box, a vase, a toy fir and a lemon stand on a round table under one soft light. The scene is in
metres, z up, the table top at z = 0.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.scenes import textures
from csd_nerf.scenes.casting import (
    ObjectEdit,
    PinholeCamera,
    Scene,
    SceneObject,
    SceneView,
    check_count,
    look_at,
)
from csd_nerf.scenes.primitives import Array, Box, Ellipsoid, Frustum

DOME_RADIUS = 12.0
"""Radius in metres of the sphere around everything that carries the sky and the meadow."""

BALL = Ellipsoid((0.42, -0.30, 0.30), (0.30, 0.30, 0.30))
BOX = Box((-0.38, -0.36, 0.22), (0.24, 0.24, 0.22), 0.45)
LEMON = Ellipsoid((0.03, -0.66, 0.115), (0.17, 0.115, 0.115))
VASE = (
    Ellipsoid((-0.36, 0.40, 0.30), (0.25, 0.25, 0.30)),
    Frustum((-0.36, 0.40, 0.50), 0.28, 0.11, 0.17),
)
FIR = (
    Frustum((0.34, 0.40, 0.0), 0.16, 0.08, 0.08),
    Frustum((0.34, 0.40, 0.14), 0.42, 0.33, 0.06),
    Frustum((0.34, 0.40, 0.44), 0.46, 0.24, 0.0),
)
TABLE = Frustum((0.0, 0.0, -0.12), 0.12, 1.15, 1.15)

OBJECTS = (
    SceneObject("table", (TABLE,), textures.planks_with_mat, textures.TABLE_PALETTE, (0, 0, -0.06), 0.0),
    SceneObject(
        "ball",
        (BALL,),
        lambda points, normals, palette: textures.segments(points, BALL.center, palette),
        textures.BALL_PALETTE,
        BALL.center,
        0.30,
    ),
    SceneObject(
        "box",
        (BOX,),
        lambda points, normals, palette: textures.ribbon(
            BOX.to_local(points - np.array(BOX.center, points.dtype)[:, None]), palette
        ),
        textures.BOX_PALETTE,
        BOX.center,
        0.27,
    ),
    SceneObject("vase", VASE, textures.zigzag_bands, textures.VASE_PALETTE, (-0.36, 0.40, 0.27), 0.25),
    SceneObject("fir", FIR, textures.fir_branches, textures.FIR_PALETTE, (0.34, 0.40, 0.30), 0.27),
    SceneObject("lemon", (LEMON,), textures.lemon_peel, textures.LEMON_PALETTE, LEMON.center, 0.13),
)

OBJECT_EDITS: dict[str, ObjectEdit] = {
    "the ball is blue": ObjectEdit("ball", ((0.10, 0.28, 0.85), (0.93, 0.92, 0.86))),
    "the ball is green": ObjectEdit("ball", ((0.13, 0.62, 0.22), (0.93, 0.92, 0.86))),
    "the box is red": ObjectEdit("box", ((0.82, 0.12, 0.12), (0.96, 0.80, 0.22))),
    "the vase is purple": ObjectEdit("vase", ((0.50, 0.22, 0.66), (0.95, 0.88, 0.74), (0.16, 0.22, 0.42))),
    "the fir is covered in snow": ObjectEdit(
        "fir", ((0.86, 0.90, 0.95), (0.70, 0.80, 0.90), (0.42, 0.27, 0.15))
    ),
    "the lemon is an orange": ObjectEdit("lemon", ((0.98, 0.50, 0.08), (0.90, 0.36, 0.05))),
}
"""Edits of single objects whose true result is known, by the instruction that asks for them."""


def orbit_cameras(count: int, *, size: int = 128, seed: int = 0) -> list[PinholeCamera]:
    """`count` cameras around the table on rings at three heights, all looking at its middle.

    Neighbours in the list are on different rings, so that taking every n-th for evaluation leaves all three
    covered. `seed` turns the rings and jitters every camera a little. Pictures are `size` x `size` pixels.
    """
    check_count(count)
    generator = np.random.default_rng(seed)
    elevations = np.radians([16.0, 33.0, 52.0])
    start = generator.uniform(0, 2 * np.pi)
    cameras = []
    for index in range(count):
        azimuth = start + 2 * np.pi * index / count + generator.uniform(-0.04, 0.04)
        elevation = elevations[index % 3] + generator.uniform(-0.05, 0.05)
        distance = 2.35 * generator.uniform(0.96, 1.04)
        position = distance * np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        target = np.array([0.0, 0.0, 0.20]) + generator.uniform(-0.05, 0.05, 3)
        focal = 0.5 * size / np.tan(np.radians(56) / 2)
        cameras.append(PinholeCamera(look_at(position, target), float(focal), size, size))
    return cameras


def _sky_over_meadow(points: Array) -> Array:
    return textures.meadow_and_sky(points / np.linalg.norm(points, axis=0))


STILL_LIFE = Scene(
    OBJECTS, Ellipsoid((0, 0, 0), (DOME_RADIUS,) * 3), _sky_over_meadow, orbit_cameras, OBJECT_EDITS
)

OBJECT_NAMES = STILL_LIFE.object_names
"""Name of every value in `SceneView.objects`."""


def render(camera: PinholeCamera, *, edit: str | None = None, samples_per_side: int = 3) -> SceneView:
    """A view of the still life, see `Scene.render`."""
    return STILL_LIFE.render(camera, edit=edit, samples_per_side=samples_per_side)
