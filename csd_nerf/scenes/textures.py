"""Procedural textures of the still life: colours as functions of the surface point (numpy).

Points are (3, R) in metres, colours (3, R) in 0..1. Edges are smooth over about a centimetre, and no
detail is finer than a few centimetres, so that a small field can learn them.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.scenes.primitives import Array

Color = tuple[float, float, float]
Palette = tuple[Color, ...]

TABLE_PALETTE: Palette = ((0.78, 0.55, 0.33), (0.62, 0.40, 0.22), (0.94, 0.90, 0.80), (0.20, 0.50, 0.52))
BALL_PALETTE: Palette = ((0.85, 0.13, 0.12), (0.93, 0.92, 0.86))
BOX_PALETTE: Palette = ((0.15, 0.33, 0.75), (0.96, 0.80, 0.22))
VASE_PALETTE: Palette = ((0.80, 0.42, 0.25), (0.95, 0.88, 0.74), (0.16, 0.22, 0.42))
FIR_PALETTE: Palette = ((0.16, 0.52, 0.20), (0.42, 0.72, 0.26), (0.42, 0.27, 0.15))
LEMON_PALETTE: Palette = ((0.98, 0.83, 0.16), (0.82, 0.72, 0.12))


def step(value: Array, width: float) -> Array:
    """0 below zero, 1 above, smooth over `width`."""
    t = np.clip(value / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Array | Color, second: Array | Color, share: Array) -> Array:
    """(1 - share) first + share second, with colours as (3,) or (3, R) and share (R,)."""
    first, second = (np.asarray(c) if np.ndim(c) == 2 else np.asarray(c)[:, None] for c in (first, second))
    return first + (second - first) * share


def planks_with_mat(points: Array, normals: Array, palette: Palette) -> Array:
    """The table: planks of two woods with a grain, a chequered round mat in the middle."""
    light_wood, dark_wood, mat_light, mat_dark = palette
    x, y, _ = points
    plank = np.floor(x / 0.23)
    tone = 0.5 + 0.5 * np.sin(plank * 2.4)
    grain = 0.5 + 0.5 * np.sin(9 * y + 3 * np.sin(2.5 * y + plank) + 40 * x + 5 * plank)
    wood = mix(light_wood, dark_wood, 0.55 * tone + 0.3 * grain)
    gap = np.abs(x / 0.23 - np.round(x / 0.23)) * 0.23
    wood = wood * (0.6 + 0.4 * step(gap - 0.008, 0.012))
    checks = step(np.sin(np.pi * x / 0.17) * np.sin(np.pi * y / 0.17), 0.12)
    mat = mix(mat_light, mat_dark, checks)
    radius = np.hypot(x, y)
    mat = mix(mat, mat_dark, step(radius - 0.78, 0.015))
    on_mat = step(0.84 - radius, 0.012) * (normals[2] > 0.5)
    return mix(wood, mat, on_mat)


def segments(points: Array, center: Color, palette: Palette) -> Array:
    """A beach ball about `center`: eight segments in two colours, tilted, with caps."""
    x, y, z = points - np.array(center)[:, None]
    tilt = 0.6
    y, z = np.cos(tilt) * y - np.sin(tilt) * z, np.sin(tilt) * y + np.cos(tilt) * z
    radius = np.sqrt(x * x + y * y + z * z)
    share = step(np.sin(4 * np.arctan2(y, x)) * np.hypot(x, y) / radius, 0.12)
    share = np.where(np.abs(z) > 0.88 * radius, 0.0, share)
    return mix(palette[0], palette[1], share)


def ribbon(local_points: Array, palette: Palette) -> Array:
    """A wrapped present: paper with rows of dots, and a ribbon around it both ways.

    `local_points` are in the axes of the box, from its centre.
    """
    x, y, z = local_points
    paper, band = palette
    # The coordinate across each face differs; taking all three keeps the pattern continuous over edges.
    dots = np.cos(2 * np.pi * x / 0.16) + np.cos(2 * np.pi * y / 0.16) + np.cos(2 * np.pi * z / 0.16)
    pattern = mix(paper, (0.85, 0.90, 0.98), 0.75 * step(dots - 1.0, 0.6))
    nearest = np.minimum(np.abs(x), np.abs(y))
    return mix(pattern, band, step(0.045 - nearest, 0.012))


def zigzag_bands(points: Array, normals: Array, palette: Palette) -> Array:
    """A clay vase with a zigzag around its belly and two stripes, about its own axis at (-0.36, 0.40)."""
    clay, cream, dark = palette
    x, y, z = points[0] + 0.36, points[1] - 0.40, points[2]
    angle = np.arctan2(y, x)
    wave = np.abs((angle * 8 / (2 * np.pi)) % 1 - 0.5) * 0.26
    color = mix(clay, cream, step(0.028 - np.abs(z - 0.23 - wave), 0.014))
    for level in (0.14, 0.47):
        color = mix(color, dark, step(0.024 - np.abs(z - level), 0.012))
    color = mix(color, cream, step(z - 0.735, 0.012))
    mouth = step(0.13 - np.hypot(x, y), 0.015) * (normals[2] > 0.9) * (z > 0.7)
    return mix(color, (0.16, 0.09, 0.07), mouth)


def fir_branches(points: Array, normals: Array, palette: Palette) -> Array:
    """A toy fir about its axis at (0.34, 0.40): a brown trunk, green tiers with lighter stripes."""
    shade, light, bark = palette
    x, y, z = points[0] - 0.34, points[1] - 0.40, points[2]
    angle = np.arctan2(y, x)
    stripes = step(np.sin(9 * angle + 6 * np.sin(7 * z)), 0.7)
    leaves = mix(shade, light, 0.8 * stripes)
    trunk = (np.hypot(x, y) < 0.085) & (z < 0.15)
    return np.where(trunk, np.asarray(bark)[:, None], leaves)


def lemon_peel(points: Array, normals: Array, palette: Palette) -> Array:
    """A lemon along x with a mottled peel."""
    x, y, z = points
    mottle = np.sin(31 * x + 2 * np.sin(23 * y)) * np.sin(29 * y + 7 * z) * np.sin(27 * z + 1.0)
    return mix(palette[0], palette[1], step(mottle - 0.1, 0.6))


def _soft_noise(directions: Array, frequency: float, seed: int) -> Array:
    """Smooth values (R,) in about -1..1 over the sphere: a sum of plane waves in random directions."""
    generator = np.random.default_rng(seed)
    waves = generator.normal(size=(6, 3)) * frequency
    phases = generator.uniform(0, 2 * np.pi, (6, 1))
    return np.sin(waves @ directions + phases).sum(0) / 2.5


def meadow_and_sky(directions: Array) -> Array:
    """The far dome, from unit vectors (3, R): blue sky with clouds over hills and a meadow with flowers."""
    height = directions[2]
    hills = 0.07 + 0.05 * _soft_noise(np.stack([directions[0], directions[1], 0 * height]), 3.0, 1)
    sky = mix((0.80, 0.88, 0.95), (0.30, 0.55, 0.88), np.clip(height / 0.75, 0, 1) ** 0.8)
    clouds = step(_soft_noise(directions * np.array([[1.0], [1.0], [2.2]]), 2.6, 2) - 0.35, 0.9)
    sky = mix(sky, (0.97, 0.96, 0.95), 0.85 * clouds)
    patches = 0.5 + 0.5 * np.clip(_soft_noise(directions, 5.0, 3), -1, 1)
    meadow = mix((0.28, 0.47, 0.18), (0.56, 0.66, 0.26), patches)
    flowers = step(_soft_noise(directions, 9.0, 4) - 0.9, 0.7)
    meadow = mix(meadow, (0.78, 0.74, 0.38), 0.6 * flowers)
    far = mix((0.33, 0.50, 0.40), (0.45, 0.58, 0.42), patches)
    ground = mix(far, meadow, step(-height - 0.02, 0.12))
    return mix(ground, sky, step(height - hills, 0.05))
