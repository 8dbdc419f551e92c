"""Ray casting of a few solids in closed form (numpy).

Every solid answers two questions for many rays at once: where is it hit first, and which way does its
surface face there. Points and directions are float arrays of shape (3, R), one row per coordinate, so that
every operation runs over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

MINIMUM_DISTANCE = 1e-4
"""Hits nearer than this are ignored (scene units), so that a shadow ray does not hit where it starts."""


class Solid(Protocol):
    """Something a ray can hit."""

    def intersect(self, origins: Array, directions: Array) -> Array:
        """Distance (R,) along unit `directions` (3, R) from `origins` (3, R) or (3, 1); inf where missed."""
        ...

    def normal(self, points: Array) -> Array:
        """Outward unit normal (3, R) at surface `points` (3, R)."""
        ...


def _nearest_positive(*distances: Array) -> Array:
    nearest = np.full(np.broadcast_shapes(*(d.shape for d in distances)), np.inf, distances[0].dtype)
    for distance in distances:
        np.minimum(nearest, np.where(distance > MINIMUM_DISTANCE, distance, np.inf), out=nearest)
    return nearest


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid whose axes are those of the scene."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]

    def _to_unit_sphere(self, vectors: Array) -> Array:
        return vectors / np.array(self.radii, vectors.dtype)[:, None]

    def intersect(self, origins: Array, directions: Array) -> Array:
        start = self._to_unit_sphere(origins - np.array(self.center, origins.dtype)[:, None])
        step = self._to_unit_sphere(directions)
        a = (step * step).sum(0)
        b = (start * step).sum(0)
        c = (start * start).sum(0) - 1
        discriminant = b * b - a * c
        root = np.sqrt(np.where(discriminant < 0, np.nan, discriminant))
        return _nearest_positive((-b - root) / a, (-b + root) / a)

    def normal(self, points: Array) -> Array:
        center = np.array(self.center, points.dtype)[:, None]
        gradient = self._to_unit_sphere(self._to_unit_sphere(points - center))
        return gradient / np.linalg.norm(gradient, axis=0)


@dataclass(frozen=True)
class Box:
    """A box standing upright, turned by `yaw` radians about the vertical."""

    center: tuple[float, float, float]
    half_size: tuple[float, float, float]
    yaw: float

    def to_local(self, vectors: Array) -> Array:
        """Turn vectors (3, R) from the scene's axes to those of the box."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.stack(
            [cos * vectors[0] + sin * vectors[1], cos * vectors[1] - sin * vectors[0], vectors[2]]
        )

    def intersect(self, origins: Array, directions: Array) -> Array:
        start = self.to_local(origins - np.array(self.center, origins.dtype)[:, None])
        step = self.to_local(directions)
        half = np.array(self.half_size, origins.dtype)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (-half - start) / step, (half - start) / step
        enter = np.minimum(first, second).max(0)
        leave = np.maximum(first, second).min(0)
        return np.where(enter <= leave, _nearest_positive(enter, leave), np.inf)

    def normal(self, points: Array) -> Array:
        local = self.to_local(points - np.array(self.center, points.dtype)[:, None])
        share = local / np.array(self.half_size, points.dtype)[:, None]
        axis = np.abs(share).argmax(0)
        face = np.where(np.arange(3)[:, None] == axis, np.sign(share), 0.0)
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.stack([cos * face[0] - sin * face[1], sin * face[0] + cos * face[1], face[2]])


@dataclass(frozen=True)
class Frustum:
    """An upright solid of circular section: a cylinder (equal radii), a cone (top radius 0), or between."""

    base: tuple[float, float, float]
    height: float
    bottom_radius: float
    top_radius: float

    @property
    def slope(self) -> float:
        """Change of radius per unit of height."""
        return (self.top_radius - self.bottom_radius) / self.height

    def intersect(self, origins: Array, directions: Array) -> Array:
        x, y, z = origins - np.array(self.base, origins.dtype)[:, None]
        u, v, w = directions
        # On the side x^2 + y^2 = (bottom_radius + slope z)^2, a quadratic in the distance.
        radius = self.bottom_radius + self.slope * z
        a = u * u + v * v - self.slope**2 * w * w
        b = x * u + y * v - self.slope * w * radius
        c = x * x + y * y - radius * radius
        discriminant = b * b - a * c
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(np.where(discriminant < 0, np.nan, discriminant))
            candidates = []
            for distance in ((-b - root) / a, (-b + root) / a):
                level = z + distance * w
                candidates.append(np.where((level >= 0) & (level <= self.height), distance, np.inf))
            for level, cap_radius in ((0.0, self.bottom_radius), (self.height, self.top_radius)):
                distance = (level - z) / w
                inside = (x + distance * u) ** 2 + (y + distance * v) ** 2 <= cap_radius**2
                candidates.append(np.where(inside, distance, np.inf))
        return _nearest_positive(*candidates)

    def normal(self, points: Array) -> Array:
        x, y, z = points - np.array(self.base, points.dtype)[:, None]
        distance = np.hypot(x, y)
        to_side = np.abs(distance - self.bottom_radius - self.slope * z)
        on_bottom = np.abs(z) < to_side
        on_top = np.abs(z - self.height) < to_side
        safe = np.maximum(distance, 1e-9)
        side = np.stack([x / safe, y / safe, np.full_like(z, -self.slope)]) / np.hypot(1, self.slope)
        cap = np.stack([np.zeros_like(z), np.zeros_like(z), np.where(on_top, 1.0, -1.0)])
        return np.where(on_bottom | on_top, cap, side)
