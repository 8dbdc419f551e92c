"""Scenes of a few painted solids inside a shell, ray cast in closed form: what is seen, how far, and of what.

A scene is in metres, z up. Every colour is a function of the surface point alone (Lambert's law, no
interreflection), so a point looks the same from every camera, and repainting an object changes that object
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from csd_nerf.errors import InputError, check
from csd_nerf.scenes.primitives import Array, Solid
from csd_nerf.scenes.textures import Color, Palette

if TYPE_CHECKING:
    from csd_nerf.scenes.operators import Operator

LIGHT_DIRECTION = np.array([0.50, -0.42, 0.76]) / np.linalg.norm([0.50, -0.42, 0.76])
"""Unit vector towards the middle of the light."""

LIGHT_SPREAD = 0.10
"""Half the width of the square light, as the tangent of the angle it fills; it softens the shadows."""

RAYS_AT_A_TIME = 1 << 14
"""So many rays' intermediate results fit in a processor's cache."""

LIGHT_COLOR: Color = (0.72, 0.69, 0.62)
SKY_AMBIENT: Color = (0.42, 0.45, 0.50)
GROUND_AMBIENT: Color = (0.27, 0.26, 0.20)


@dataclass(frozen=True)
class SceneObject:
    """Something with a name, made of solids, painted by a texture from a palette.

    `texture` maps surface points (3, R), their normals (3, R) and the palette to colours (3, R) in 0..1.
    `reach` is the radius around `middle` that contains the object, for the shade where it meets others;
    0 gives none.
    """

    name: str
    solids: tuple[Solid, ...]
    texture: Callable[[Array, Array, Palette], Array]
    palette: Palette
    middle: tuple[float, float, float]
    reach: float


@dataclass(frozen=True)
class ObjectEdit:
    """Repainting one object: its name and the palette that replaces its own."""

    target: str
    palette: Palette


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera without distortion, its principal point in the middle of the picture.

    camera_to_world: (3, 4), OpenGL convention as in nerfstudio: x right, y up, looking along -z; metres.
    focal: focal length in pixels. width, height: picture size in pixels.
    """

    camera_to_world: NDArray[np.float64]
    focal: float
    width: int
    height: int

    def directions(self, rows: Array, columns: Array) -> Array:
        """Unit ray directions (3, R) through picture positions (R,) in pixels; centres end in .5."""
        x = (columns - self.width / 2) / self.focal
        y = (self.height / 2 - rows) / self.focal
        along = self.camera_to_world[:, :3] @ np.stack([x, y, -np.ones_like(x)])
        return along / np.linalg.norm(along, axis=0)


@dataclass(frozen=True)
class SceneView:
    """A rendered view.

    rgb: (H, W, 3) float32 in 0..1, anti-aliased.
    depth: (H, W) float32, Euclidean distance in metres from the camera along the ray of the pixel's centre.
    objects: (H, W) uint8, index into `Scene.object_names` of what the pixel's centre shows.
    """

    rgb: NDArray[np.float32]
    depth: NDArray[np.float32]
    objects: NDArray[np.uint8]


def look_at(position: Array, target: Array) -> NDArray[np.float64]:
    """Camera-to-world matrix (3, 4) of an upright camera at `position` (3,) looking at `target` (3,)."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(backward, right), backward, position], axis=1)


def check_count(count: int) -> None:
    """Refuse a capture without cameras.

    Raises:
        InputError: when `count` is below 1.
    """
    check(
        count >= 1,
        "no cameras",
        expected="at least 1 view",
        got=count,
        hint="ask for a positive number of views",
    )


def _towards_light(offset: Array) -> Array:
    """Unit directions (3, R) to places on the square light; `offset` (2, R) in -1..1 across it."""
    across = np.cross(LIGHT_DIRECTION, [0.0, 0.0, 1.0])
    across /= np.linalg.norm(across)
    along = np.cross(LIGHT_DIRECTION, across)
    direction = LIGHT_DIRECTION[:, None] + LIGHT_SPREAD * (
        across[:, None] * offset[0] + along[:, None] * offset[1]
    )
    return direction / np.linalg.norm(direction, axis=0)


@dataclass(frozen=True)
class Scene:
    """What there is to see, and the cameras that a capture of it has.

    Attributes:
        objects: what stands in it.
        shell: what is around everything, seen from inside.
        shell_texture: from points on the shell (3, R) to the colours that are seen there (3, R), 0..1; no
            light and no shade is put on them.
        cameras: `cameras(count, size=, seed=)` of pictures of `size` x `size` pixels. Neighbours in the list
            differ, so that every n-th makes an evaluation set.
        edits: of single objects whose true result is known, by the instruction that asks for them.
    """

    objects: tuple[SceneObject, ...]
    shell: Solid
    shell_texture: Callable[[Array], Array]
    cameras: Callable[..., list[PinholeCamera]]
    edits: Mapping[str, ObjectEdit] = field(default_factory=dict)

    @property
    def object_names(self) -> tuple[str, ...]:
        """Name of every value in `SceneView.objects`."""
        return ("background", *(thing.name for thing in self.objects))

    def find_edit(self, edit: str | None) -> tuple[ObjectEdit | None, Operator | None]:
        """What a known edit does: repaint an object, or pass the whole picture through an operator.

        Raises InputError for an unknown edit.
        """
        if edit is None:
            return None, None
        if edit in self.edits:
            return self.edits[edit], None
        from csd_nerf.scenes.operators import OPERATORS, TINT_INSTRUCTION, TINTS, Operator  # need torch

        whole_picture = OPERATORS | {
            name: Operator(name, TINT_INSTRUCTION, tint) for name, tint in TINTS.items()
        }
        if edit not in whole_picture:
            raise InputError(
                "unknown edit of the procedural scene",
                expected=" | ".join([*self.edits, *whole_picture]),
                got=repr(edit),
                hint="choose one of the known edits",
            )
        return None, whole_picture[edit]

    def render(
        self, camera: PinholeCamera, *, edit: str | None = None, samples_per_side: int = 3
    ) -> SceneView:
        """Render the scene, as it is or under a known edit.

        edit: a key of `edits` (one object repainted), or a name in `operators.OPERATORS` or
            `operators.TINTS` (the whole picture passed through it). samples_per_side: rays per pixel and
            side; each goes to another place on the light, so shadows are soft from 2 on.
        Raises InputError for an unknown edit.
        """
        repainted, operator = self.find_edit(edit)
        palettes = {thing.name: thing.palette for thing in self.objects}
        if repainted is not None:
            palettes[repainted.target] = repainted.palette

        rows, columns = (
            axis.ravel().astype(np.float64) for axis in np.mgrid[: camera.height, : camera.width]
        )
        origin = camera.camera_to_world[:, 3:]
        count = samples_per_side**2
        steps = (np.arange(samples_per_side) + 0.5) / samples_per_side
        in_pixel = np.stack(np.meshgrid(steps, steps, indexing="ij")).reshape(2, count)
        # Each sample of a pixel goes to another place on the light, unrelated to its place in the pixel.
        on_light = 2 * in_pixel[:, np.random.default_rng(0).permutation(count)] - 1
        directions = camera.directions(
            (rows[:, None] + in_pixel[0]).ravel(), (columns[:, None] + in_pixel[1]).ravel()
        )
        offsets = np.tile(on_light, rows.size)
        colors = np.empty_like(directions)
        for start in range(0, directions.shape[1], RAYS_AT_A_TIME):
            chunk = np.s_[:, start : start + RAYS_AT_A_TIME]
            colors[chunk] = self._shade(origin, directions[chunk], offsets[chunk], palettes)
        rgb = (
            colors.reshape(3, camera.height, camera.width, count)
            .mean(-1)
            .transpose(1, 2, 0)
            .astype(np.float32)
        )
        if operator is not None:
            import torch

            channels_first = torch.from_numpy(rgb).permute(2, 0, 1)
            rgb = operator.apply(channels_first).permute(1, 2, 0).contiguous().numpy()

        distance, objects, _ = self._first_hit(origin, camera.directions(rows + 0.5, columns + 0.5))
        shape = (camera.height, camera.width)
        return SceneView(rgb, distance.reshape(shape).astype(np.float32), objects.reshape(shape))

    def _first_hit(
        self, origins: Array, directions: Array
    ) -> tuple[Array, NDArray[np.uint8], NDArray[np.uint8]]:
        """Distance, object (0 background) and its solid, each (R,), of what rays (3, R) hit."""
        distance = self.shell.intersect(origins, directions)
        objects = np.zeros(distance.shape, np.uint8)
        solids = np.zeros(distance.shape, np.uint8)
        for index, thing in enumerate(self.objects, start=1):
            for part, solid in enumerate(thing.solids):
                candidate = solid.intersect(origins, directions)
                nearer = candidate < distance
                distance = np.where(nearer, candidate, distance)
                objects[nearer] = index
                solids[nearer] = part
        return distance, objects, solids

    def _in_shadow(self, points: Array, directions: Array) -> NDArray[np.bool_]:
        blocked = np.zeros(points.shape[1], bool)
        for thing in self.objects:
            for solid in thing.solids:
                open_ways = np.flatnonzero(~blocked)
                hit = np.isfinite(solid.intersect(points[:, open_ways], directions[:, open_ways]))
                blocked[open_ways[hit]] = True
        return blocked

    def _openness(self, points: Array, own_index: int) -> Array:
        """Share (R,) of ambient light that reaches `points`, dimmed close to the other objects."""
        share = np.ones(points.shape[1])
        for index, thing in enumerate(self.objects, start=1):
            if thing.reach and index != own_index:
                squared = ((points - np.array(thing.middle)[:, None]) ** 2).sum(0)
                share *= 1 - 0.5 / (1 + (squared / thing.reach**2) ** 2)
        return share

    def _shade(
        self, origins: Array, directions: Array, light_offset: Array, palettes: dict[str, Palette]
    ) -> Array:
        """Colours (3, R) in 0..1 of what rays (3, R) see, each lit from one place on the light."""
        distance, objects, solids = self._first_hit(origins, directions)
        points = origins + distance * directions
        colors = self.shell_texture(points)
        for index, thing in enumerate(self.objects, start=1):
            for part, solid in enumerate(thing.solids):
                seen = np.flatnonzero((objects == index) & (solids == part))
                if not len(seen):
                    continue
                surface = points[:, seen]
                normals = solid.normal(surface)
                to_light = _towards_light(light_offset[:, seen])
                facing = np.maximum((normals * to_light).sum(0), 0)
                lit = np.flatnonzero(facing)
                facing[lit[self._in_shadow(surface[:, lit] + 1e-3 * normals[:, lit], to_light[:, lit])]] = 0
                upward = 0.5 + 0.5 * normals[2]
                ambient = np.outer(SKY_AMBIENT, upward) + np.outer(GROUND_AMBIENT, 1 - upward)
                light = ambient * self._openness(surface, index) + np.outer(LIGHT_COLOR, facing)
                colors[:, seen] = thing.texture(surface, normals, palettes[thing.name]) * light
        return np.clip(colors, 0, 1)
