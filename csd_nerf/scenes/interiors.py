"""A furnished room seen from its middle, and a long corridor: captures whose views share little.

Around a still life every camera sees the same things. Here the cameras look outward, or along ten metres of
hall, and two views that are drawn at random mostly see different parts. In metres, z up, floors at z = 0.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.scenes import textures
from csd_nerf.scenes.casting import ObjectEdit, PinholeCamera, Scene, SceneObject, check_count, look_at
from csd_nerf.scenes.primitives import Array, Box, Ellipsoid, Frustum
from csd_nerf.scenes.textures import Color, mix, step

ROOM = Box((0.0, 0.0, 1.35), (2.6, 2.2, 1.35), 0.0)
"""Walls, floor and ceiling of the room, from inside."""

CORRIDOR = Box((0.0, 0.0, 1.2), (6.0, 0.9, 1.2), 0.0)
"""Those of the corridor, which runs along x."""

DOOR_SPACING = 2.0
"""Metres from door to door, in both walls of the corridor."""

FOCAL = 0.5 / np.tan(np.radians(64) / 2)
"""Of both captures, in sides of the picture: 64 degrees across."""


def room_cameras(count: int, *, size: int = 128, seed: int = 0) -> list[PinholeCamera]:
    """`count` cameras on a ring of half a metre in the middle of the room, each looking away from the middle.

    They look down, ahead and up by turns. Pictures are `size` x `size` pixels; `seed` turns the ring and
    jitters every camera a little.
    """
    check_count(count)
    generator = np.random.default_rng(seed)
    start = generator.uniform(0, 2 * np.pi)
    cameras = []
    for index in range(count):
        azimuth = start + 2 * np.pi * index / count + generator.uniform(-0.04, 0.04)
        elevation = np.radians((-26.0, 0.0, 22.0)[index % 3]) + generator.uniform(-0.05, 0.05)
        outward = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        place = np.array([0.0, 0.0, 1.35]) + generator.uniform(0.4, 0.6) * outward
        place[2] += generator.uniform(-0.3, 0.3)
        ahead = np.cos(elevation) * outward + np.array([0.0, 0.0, np.sin(elevation)])
        cameras.append(PinholeCamera(look_at(place, place + ahead), float(FOCAL * size), size, size))
    return cameras


def corridor_cameras(count: int, *, size: int = 128, seed: int = 0) -> list[PinholeCamera]:
    """`count` cameras along the corridor, looking ahead, back and at either wall by turns.

    Pictures are `size` x `size` pixels; `seed` jitters every camera a little.
    """
    check_count(count)
    generator = np.random.default_rng(seed)
    cameras = []
    for index in range(count):
        along = -5.2 + 10.4 * (index + generator.uniform(0.2, 0.8)) / count
        azimuth = np.radians((12.0, 118.0, 192.0, -62.0)[index % 4]) + generator.uniform(-0.25, 0.25)
        elevation = np.radians(-6.0) + generator.uniform(-0.15, 0.15)
        # Away from the wall that it looks at, which is near enough.
        place = np.array([along, generator.uniform(-0.1, 0.1) - 0.35 * np.sin(azimuth), 1.3])
        place[2] += generator.uniform(-0.25, 0.25)
        ahead = np.array(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ]
        )
        cameras.append(PinholeCamera(look_at(place, place + ahead), float(FOCAL * size), size, size))
    return cameras


def _frame(across: Array, height: Array, middle: tuple[float, float], half: tuple[float, float]) -> Array:
    """1 inside an upright rectangle of a wall, 0 outside, smooth between."""
    inside = np.minimum(half[0] - np.abs(across - middle[0]), half[1] - np.abs(height - middle[1]))
    return step(inside, 0.02)


def _boards(along: Array, across: Array, light: Color, dark: Color) -> Array:
    """A floor of boards that run along one axis."""
    board = np.floor(across / 0.3)
    grain = 0.5 + 0.5 * np.sin(6 * along + 3 * np.sin(2 * along + board) + 5 * board)
    wood = mix(light, dark, 0.5 * (0.5 + 0.5 * np.sin(2.4 * board)) + 0.3 * grain)
    gap = np.abs(across / 0.3 - np.round(across / 0.3)) * 0.3
    return wood * (0.65 + 0.35 * step(gap - 0.01, 0.02))


def _faces(points: Array, shell: Box) -> tuple[Array, Array]:
    """Which axis the wall at each point is across, (R,), and on which side, -1 or 1."""
    local = (points - np.array(shell.center)[:, None]) / np.array(shell.half_size)[:, None]
    axis = np.abs(local).argmax(0)
    return axis, np.sign(np.take_along_axis(local, axis[None], 0)[0])


def room_walls(points: Array) -> Array:
    """The shell of the room: four papered walls with a window and pictures, boards, a rug, a lamp."""
    x, y, z = points
    axis, side = _faces(points, ROOM)

    floor = _boards(x, y, (0.74, 0.52, 0.32), (0.52, 0.33, 0.19))
    ring = 0.5 + 0.5 * np.sin(2 * np.pi * np.hypot(x / 1.3, y) / 0.3)
    floor = mix(floor, mix((0.70, 0.16, 0.18), (0.92, 0.82, 0.58), step(ring - 0.5, 0.3)),
                step(1.0 - np.hypot(x / 1.3, y), 0.03))  # fmt: skip
    ceiling = mix((0.80, 0.79, 0.76), (1.0, 0.97, 0.86), step(0.5 - np.hypot(x, y), 0.25))

    stripes = step(np.sin(2 * np.pi * y / 0.4), 0.5)
    east = mix((0.80, 0.42, 0.36), (0.90, 0.62, 0.50), stripes)
    sea = mix((0.14, 0.42, 0.60), (0.95, 0.78, 0.50), step(z - 1.62 - 0.05 * np.sin(9 * y), 0.05))
    east = mix(east, (0.30, 0.18, 0.10), _frame(y, z, (0.3, 1.65), (0.72, 0.48)))
    east = mix(east, sea, _frame(y, z, (0.3, 1.65), (0.64, 0.40)))

    leaves = step(np.sin(2 * np.pi * (y + z) / 0.5) * np.sin(2 * np.pi * (y - z) / 0.5), 0.3)
    west = mix((0.42, 0.56, 0.36), (0.62, 0.72, 0.46), leaves)
    west = mix(west, (0.88, 0.86, 0.80), _frame(y, z, (-0.6, 1.05), (0.52, 1.05)))
    west = mix(west, (0.46, 0.30, 0.18), _frame(y, z, (-0.6, 1.0), (0.44, 1.0)))

    north = mix((0.36, 0.48, 0.68), (0.50, 0.62, 0.78), step(np.sin(2 * np.pi * x / 0.6), 0.6))
    outside = mix((0.36, 0.56, 0.26), (0.62, 0.80, 0.95), step(z - 1.35 - 0.12 * np.sin(3 * x), 0.08))
    north = mix(north, (0.94, 0.93, 0.90), _frame(x, z, (-0.5, 1.55), (1.0, 0.62)))
    panes = np.maximum(_frame(x, z, (-0.97, 1.55), (0.43, 0.52)), _frame(x, z, (-0.03, 1.55), (0.43, 0.52)))
    north = mix(north, outside, panes)

    south = mix((0.84, 0.70, 0.36), (0.94, 0.84, 0.58), step(np.sin(2 * np.pi * z / 0.45), 0.5))
    books = 0.5 + 0.5 * np.sin(7.3 * np.floor(x / 0.12) + 2.1 * np.floor(z / 0.4))
    spines = np.where(books > 0.66, 0, np.where(books > 0.33, 1, 2))
    colours = np.array([[0.72, 0.20, 0.16], [0.16, 0.36, 0.42], [0.88, 0.80, 0.62]]).T[:, spines]
    south = mix(south, (0.36, 0.22, 0.13), _frame(x, z, (0.9, 1.5), (0.86, 0.66)))
    south = mix(south, colours, _frame(x, (z - 0.9) % 0.4 + 0.9, (0.9, 1.1), (0.78, 0.16))
                * _frame(x, z, (0.9, 1.5), (0.80, 0.60)))  # fmt: skip

    walls = np.where(axis == 0, np.where(side > 0, east, west), np.where(side > 0, north, south))
    walls = mix(walls, (0.93, 0.91, 0.86), step(0.14 - z, 0.02))
    return np.where(axis == 2, np.where(side > 0, ceiling, floor), walls)


def corridor_walls(points: Array) -> Array:
    """The shell of the corridor: a coloured door every two metres, a runner, lamps, end walls."""
    x, y, z = points
    axis, side = _faces(points, CORRIDOR)

    floor = _boards(x, y, (0.66, 0.50, 0.34), (0.48, 0.34, 0.22))
    checks = step(np.sin(np.pi * x / 0.35) * np.sin(np.pi * y / 0.35), 0.2)
    floor = mix(floor, mix((0.20, 0.42, 0.46), (0.86, 0.78, 0.56), checks), step(0.5 - np.abs(y), 0.02))
    in_bay = (x + DOOR_SPACING / 2) % DOOR_SPACING - DOOR_SPACING / 2
    ceiling = mix((0.78, 0.77, 0.75), (1.0, 0.96, 0.84), step(0.24 - np.hypot(in_bay, y), 0.1))

    doors = np.array(
        [[0.76, 0.20, 0.18], [0.20, 0.46, 0.26], [0.18, 0.32, 0.66], [0.88, 0.66, 0.18], [0.48, 0.24, 0.52]]
    ).T
    # The doors of the two walls stand opposite each other, in other colours.
    number = (np.floor((x + DOOR_SPACING / 2) / DOOR_SPACING).astype(int) + np.where(side > 0, 0, 2)) % 5
    paper = mix((0.82, 0.76, 0.66), (0.70, 0.76, 0.74), 0.5 + 0.5 * np.sin(0.9 * x))
    paper = mix(paper, (0.62, 0.52, 0.44), 0.5 * step(np.sin(2 * np.pi * x / 0.25), 0.6))
    sides = mix(paper, (0.46, 0.30, 0.20), step(0.8 - z, 0.02))
    sides = mix(sides, (0.92, 0.90, 0.84), _frame(in_bay, z, (0.0, 1.0), (0.52, 1.08)))
    sides = mix(sides, doors[:, number], _frame(in_bay, z, (0.0, 1.0), (0.44, 1.0)))
    panels = _frame(np.abs(in_bay), (z - 0.1) % 0.95, (0.2, 0.45), (0.14, 0.34)) * step(1.95 - z, 0.02)
    sides = mix(sides, 0.7 * doors[:, number], panels * _frame(in_bay, z, (0.0, 1.0), (0.40, 0.96)))

    ends = mix((0.72, 0.40, 0.30), (0.34, 0.50, 0.62), np.where(side > 0, 1.0, 0.0))
    ends = mix(ends, (0.90, 0.94, 0.98), _frame(y, z, (0.0, 1.5), (0.42, 0.5)))
    walls = np.where(axis == 0, ends, sides)
    return np.where(axis == 2, np.where(side > 0, ceiling, floor), walls)


def _plain(points: Array, normals: Array, palette: textures.Palette) -> Array:
    """Two colours in soft bands up the height."""
    return mix(palette[0], palette[1], step(np.sin(2 * np.pi * points[2] / 0.3), 0.6))


def _tufts(points: Array, normals: Array, palette: textures.Palette) -> Array:
    """A plant: a pot below, leaves of two greens above half a metre."""
    leaves = mix(
        palette[0], palette[1], step(np.sin(16 * points[0] + 5 * points[2]) * np.sin(15 * points[1]), 0.6)
    )
    return np.where(points[2] < 0.45, np.asarray(palette[2])[:, None], leaves)


def _plant(name: str, x: float, y: float) -> SceneObject:
    pot, crown = Frustum((x, y, 0.0), 0.42, 0.16, 0.22), Ellipsoid((x, y, 0.80), (0.30, 0.30, 0.42))
    palette = ((0.14, 0.42, 0.18), (0.46, 0.66, 0.24), (0.72, 0.38, 0.24))
    return SceneObject(name, (pot, crown), _tufts, palette, (x, y, 0.4), 0.3)


def _ball(x: float, y: float, radius: float) -> SceneObject:
    center = (x, y, radius)
    return SceneObject(
        "ball", (Ellipsoid(center, (radius,) * 3),),
        lambda points, normals, palette: textures.segments(points, center, palette),
        ((0.85, 0.13, 0.12), (0.93, 0.92, 0.86)), center, radius,
    )  # fmt: skip


def _chest(name: str, box: Box, palette: textures.Palette) -> SceneObject:
    return SceneObject(
        name, (box,),
        lambda points, normals, palette: textures.ribbon(
            box.to_local(points - np.array(box.center)[:, None]), palette
        ),
        palette, box.center, max(box.half_size),
    )  # fmt: skip


_BLUE_BALL = {"the ball is blue": ObjectEdit("ball", ((0.10, 0.28, 0.85), (0.93, 0.92, 0.86)))}

_BLUE_PAPER = ((0.15, 0.33, 0.75), (0.96, 0.80, 0.22))
_RED_PAPER = ((0.72, 0.20, 0.18), (0.92, 0.84, 0.60))

ROOM_SCENE = Scene(
    objects=(
        _chest("chest", Box((2.1, -1.3, 0.35), (0.40, 0.55, 0.35), 0.0), _BLUE_PAPER),
        _plant("plant", -2.1, 1.6),
        SceneObject(
            "table",
            (Frustum((-1.5, -1.3, 0.66), 0.08, 0.60, 0.60), Frustum((-1.5, -1.3, 0.0), 0.66, 0.20, 0.10)),
            _plain, ((0.62, 0.38, 0.20), (0.74, 0.50, 0.28)), (-1.5, -1.3, 0.4), 0.5,
        ),
        SceneObject(
            "lamp",
            (Frustum((1.9, 1.6, 0.0), 1.2, 0.16, 0.05), Frustum((1.9, 1.6, 1.2), 0.42, 0.32, 0.16)),
            _plain, ((0.92, 0.86, 0.66), (0.86, 0.52, 0.22)), (1.9, 1.6, 0.3), 0.25,
        ),
        _ball(0.2, 1.55, 0.32),
        SceneObject(
            "stool", (Frustum((0.1, -1.7, 0.0), 0.46, 0.26, 0.22),), _plain,
            ((0.20, 0.50, 0.52), (0.90, 0.86, 0.74)), (0.1, -1.7, 0.23), 0.25,
        ),
    ),
    shell=ROOM,
    shell_texture=room_walls,
    cameras=room_cameras,
    edits=_BLUE_BALL,
)  # fmt: skip

CORRIDOR_SCENE = Scene(
    objects=(
        _plant("first plant", -4.0, 0.58),
        _chest("red chest", Box((-3.0, -0.66, 0.25), (0.40, 0.22, 0.25), 0.0), _RED_PAPER),
        SceneObject(
            "stool", (Frustum((-1.0, 0.62, 0.0), 0.50, 0.22, 0.18),), _plain,
            ((0.20, 0.50, 0.52), (0.90, 0.86, 0.74)), (-1.0, 0.62, 0.25), 0.22,
        ),
        _ball(1.0, -0.62, 0.24),
        _plant("second plant", 3.0, -0.58),
        _chest("blue chest", Box((3.0, 0.66, 0.30), (0.44, 0.22, 0.30), 0.0), _BLUE_PAPER),
        SceneObject(
            "lamp",
            (Frustum((5.0, 0.60, 0.0), 1.1, 0.14, 0.05), Frustum((5.0, 0.60, 1.1), 0.36, 0.26, 0.14)),
            _plain, ((0.92, 0.86, 0.66), (0.86, 0.52, 0.22)), (5.0, 0.60, 0.3), 0.2,
        ),
    ),
    shell=CORRIDOR,
    shell_texture=corridor_walls,
    cameras=corridor_cameras,
    edits=_BLUE_BALL,
)  # fmt: skip
