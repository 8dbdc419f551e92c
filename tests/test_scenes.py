"""The procedural scenes: their ground truth against references written here, their edits, their datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csd_nerf.errors import InputError
from csd_nerf.scenes import still_life
from csd_nerf.scenes.casting import PinholeCamera, look_at
from csd_nerf.scenes.dataset import SCENES, write_dataset
from csd_nerf.scenes.interiors import CORRIDOR, ROOM
from csd_nerf.scenes.operators import OPERATORS
from csd_nerf.scenes.primitives import Box, Ellipsoid, Frustum, Solid
from csd_nerf.scenes.still_life import (
    OBJECT_EDITS,
    OBJECT_NAMES,
    OBJECTS,
    orbit_cameras,
    render,
)

SIZE = 64


def pixel_ray(camera: PinholeCamera, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Origin and unit direction through a pixel's centre, from the definition of an OpenGL pinhole camera."""
    x = (column + 0.5 - camera.width / 2) / camera.focal
    y = -(row + 0.5 - camera.height / 2) / camera.focal
    rotation, origin = camera.camera_to_world[:, :3], camera.camera_to_world[:, 3]
    direction = x * rotation[:, 0] + y * rotation[:, 1] - rotation[:, 2]
    return origin, direction / np.linalg.norm(direction)


def march(solid: Solid, inside: object, origin: np.ndarray, direction: np.ndarray) -> float:
    """First distance at which `inside` becomes true, by small steps and bisection; inf if never."""
    distances = np.linspace(0, 4, 2001)
    hit = [bool(inside(origin + t * direction)) for t in distances]  # type: ignore[operator]
    if not any(hit):
        return float("inf")
    last = hit.index(True)
    low, high = distances[last - 1], distances[last]
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(origin + middle * direction) else (middle, high)  # type: ignore[operator]
    return float(high)


@pytest.mark.parametrize(
    ("solid", "inside"),
    [
        (
            Ellipsoid((0.1, -0.2, 0.3), (0.5, 0.3, 0.2)),
            lambda p: ((p[0] - 0.1) / 0.5) ** 2 + ((p[1] + 0.2) / 0.3) ** 2 + ((p[2] - 0.3) / 0.2) ** 2 < 1,
        ),
        (
            Box((0.1, 0.2, 0.0), (0.4, 0.2, 0.3), np.pi / 6),
            lambda p: (
                abs(np.cos(np.pi / 6) * (p[0] - 0.1) + np.sin(np.pi / 6) * (p[1] - 0.2)) < 0.4
                and abs(np.cos(np.pi / 6) * (p[1] - 0.2) - np.sin(np.pi / 6) * (p[0] - 0.1)) < 0.2
                and abs(p[2]) < 0.3
            ),
        ),
        (
            Frustum((0.0, 0.1, -0.3), 0.7, 0.4, 0.1),
            lambda p: 0 < p[2] + 0.3 < 0.7 and np.hypot(p[0], p[1] - 0.1) < 0.4 - 0.3 * (p[2] + 0.3) / 0.7,
        ),
        (
            Frustum((0.0, 0.0, 0.0), 0.5, 0.4, 0.4),
            lambda p: 0 < p[2] < 0.5 and np.hypot(p[0], p[1]) < 0.4,
        ),
    ],
    ids=["ellipsoid", "box", "cone", "cylinder"],
)
def test_solids_are_hit_where_a_march_along_the_ray_enters_them(solid: Solid, inside: object) -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(12):
        origin = generator.normal(size=3)
        origin *= 2.5 / np.linalg.norm(origin)
        direction = generator.uniform(-0.25, 0.25, 3) - origin
        direction /= np.linalg.norm(direction)
        distance = float(solid.intersect(origin[:, None], direction[:, None])[0])
        assert distance == pytest.approx(march(solid, inside, origin, direction), abs=2e-6)
        if np.isfinite(distance):
            hits += 1
            point = origin + distance * direction
            normal = solid.normal(point[:, None])[:, 0]
            assert np.linalg.norm(normal) == pytest.approx(1)
            assert inside(point - 1e-4 * normal)  # type: ignore[operator]
            assert not inside(point + 1e-4 * normal)  # type: ignore[operator]
    assert hits >= 6


def test_depth_of_the_ball_is_that_of_a_sphere() -> None:
    camera = orbit_cameras(6, size=SIZE)[1]
    picture = render(camera, samples_per_side=1)
    center, radius = np.array(still_life.BALL.center), still_life.BALL.radii[0]
    seen = np.argwhere(picture.objects == OBJECT_NAMES.index("ball"))
    assert len(seen) > 50
    for row, column in seen:
        origin, direction = pixel_ray(camera, row, column)
        along = (center - origin) @ direction
        miss_squared = (center - origin) @ (center - origin) - along**2
        assert miss_squared < radius**2
        assert picture.depth[row, column] == pytest.approx(
            along - np.sqrt(radius**2 - miss_squared), abs=1e-5
        )


def test_depth_of_the_table_top_is_that_of_a_plane_and_every_object_is_seen() -> None:
    seen = set()
    for camera in orbit_cameras(6, size=SIZE):
        picture = render(camera, samples_per_side=1)
        seen |= set(np.unique(picture.objects).tolist())
        for row, column in np.argwhere(picture.objects == OBJECT_NAMES.index("table"))[::37]:
            origin, direction = pixel_ray(camera, row, column)
            point = origin + picture.depth[row, column] * direction
            on_top = abs(point[2]) < 1e-5 and np.hypot(*point[:2]) <= 1.15
            on_side = -0.12 <= point[2] <= 0 and np.hypot(*point[:2]) == pytest.approx(1.15, abs=1e-5)
            assert on_top or on_side
    assert seen == set(range(len(OBJECT_NAMES)))


def project(camera: PinholeCamera, point: np.ndarray) -> tuple[float, float]:
    """Row and column of a scene point in a picture, in pixels; pixel centres end in .5."""
    local = camera.camera_to_world[:, :3].T @ (point - camera.camera_to_world[:, 3])
    return (
        camera.height / 2 + camera.focal * local[1] / local[2],
        camera.width / 2 - camera.focal * local[0] / local[2],
    )


@pytest.mark.parametrize(("name", "shell"), [("room", ROOM), ("corridor", CORRIDOR)])
def test_walls_are_as_far_as_they_stand_and_all_that_is_in_there_is_seen(name: str, shell: Box) -> None:
    scene, seen = SCENES[name], set()
    for camera in scene.cameras(24, size=24):
        picture = scene.render(camera, samples_per_side=1)
        seen |= set(np.unique(picture.objects).tolist())
        for row, column in np.argwhere(picture.objects == 0)[::17]:
            origin, direction = pixel_ray(camera, row, column)
            point = origin + picture.depth[row, column] * direction
            share = np.abs(point - np.array(shell.center)) / np.array(shell.half_size)
            assert share.max() == pytest.approx(1, abs=1e-5)
    assert seen == set(range(len(scene.object_names)))


@pytest.mark.parametrize(("name", "most"), [("room", 0.1), ("corridor", 0.4)])
def test_four_views_of_an_interior_share_little_of_what_they_see(name: str, most: float) -> None:
    scene = SCENES[name]
    cameras = scene.cameras(60, size=24)[::15]
    shared = []
    for camera in cameras:
        picture = scene.render(camera, samples_per_side=1)
        for other in cameras:
            if other is camera:
                continue
            inside = 0
            for row in range(0, 24, 3):
                for column in range(0, 24, 3):
                    origin, direction = pixel_ray(camera, row, column)
                    point = origin + picture.depth[row, column] * direction
                    ahead = (point - other.camera_to_world[:, 3]) @ -other.camera_to_world[:, 2] > 0
                    place = np.array(project(other, point))
                    inside += bool(ahead and (place > 0).all() and (place < 24).all())
            shared.append(inside / 64)
    assert np.mean(shared) <= most


@pytest.mark.parametrize("name", SCENES)
def test_a_surface_point_has_one_object_and_one_color_in_every_camera(name: str) -> None:
    # Two narrow cameras look at one surface point from different places: their middle pixels show a
    # millimetre around it.
    scene = SCENES[name]
    camera = scene.cameras(6, size=SIZE)[2]
    picture = scene.render(camera, samples_per_side=1)
    generator = np.random.default_rng(0)
    compared = set()
    for row, column in generator.integers(0, SIZE, (60, 2)):
        if name == "still-life" and picture.objects[row, column] == 0:
            continue
        origin, direction = pixel_ray(camera, row, column)
        point = origin + picture.depth[row, column] * direction
        assert project(camera, point) == pytest.approx((row + 0.5, column + 0.5), abs=1e-3)
        position = origin + generator.uniform(-0.8, 0.8, 3)
        one, other = (
            scene.render(PinholeCamera(look_at(place, point), 2000.0, 1, 1)) for place in (origin, position)
        )
        if other.depth < np.linalg.norm(point - position) - 1e-3:
            continue  # something else is in the way from there
        assert other.objects == one.objects == picture.objects[row, column]
        np.testing.assert_allclose(other.rgb, one.rgb, atol=0.03)
        compared.add((row, column))
    assert len(compared) >= 25


@pytest.mark.parametrize("edit", OBJECT_EDITS)
def test_an_object_edit_changes_that_object_and_nothing_else(edit: str) -> None:
    target = OBJECT_NAMES.index(OBJECT_EDITS[edit].target)
    changed_pixels = 0
    for camera in orbit_cameras(3, size=48)[::2]:
        before, after = render(camera, samples_per_side=2), render(camera, edit=edit, samples_per_side=2)
        np.testing.assert_array_equal(before.depth, after.depth)
        np.testing.assert_array_equal(before.objects, after.objects)
        inside = before.objects == target
        border = np.zeros_like(inside)
        for rows in (-1, 0, 1):
            for columns in (-1, 0, 1):
                border |= np.roll(inside, (rows, columns), (0, 1))
        change = np.abs(after.rgb - before.rgb).max(-1)
        assert change[~border].max(initial=0) == 0
        changed_pixels += int((change[inside] > 0.05).sum())
    assert changed_pixels > 30


def test_an_operator_edit_is_the_operator_of_the_picture() -> None:
    camera = orbit_cameras(1, size=32)[0]
    expected = OPERATORS["night"].apply(torch.from_numpy(render(camera).rgb).permute(2, 0, 1))
    np.testing.assert_allclose(render(camera, edit="night").rgb, expected.permute(1, 2, 0), atol=1e-6)


def test_cameras_are_reproducible_distinct_and_look_at_the_table() -> None:
    first, again, other = (orbit_cameras(9, size=SIZE, seed=seed) for seed in (3, 3, 4))
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.camera_to_world, same.camera_to_world)
        assert not np.allclose(one.camera_to_world, different.camera_to_world)
        rotation = one.camera_to_world[:, :3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        row, column = project(one, np.array([0.0, 0.0, 0.2]))
        assert abs(row - SIZE / 2) < 4 and abs(column - SIZE / 2) < 4


def test_the_scene_has_many_hues() -> None:
    palettes = np.array([color for thing in OBJECTS for color in thing.palette])
    strong = palettes[np.ptp(palettes, axis=1) > 0.3]
    assert {0, 1, 2} == set(strong.argmax(1).tolist())  # reds, greens and blues


def test_unknown_edit_and_no_cameras_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="night"):
        render(orbit_cameras(1, size=8)[0], edit="the ball is plaid")
    with pytest.raises(InputError, match="no cameras"):
        orbit_cameras(0)
    with pytest.raises(InputError, match="unknown edit"):
        write_dataset(tmp_path / "scene", views=2, size=8, edit="the ball is plaid")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["room", "corridor"])
def test_an_interior_is_written_with_its_names_and_edits(name: str, tmp_path: Path) -> None:
    scene = SCENES[name]
    data = write_dataset(tmp_path / name, views=2, size=16, edit="the ball is blue", scene=name)  # type: ignore[arg-type]
    assert json.loads((data / "transforms.json").read_text())["object_names"] == list(scene.object_names)
    expected = scene.render(scene.cameras(2, size=16)[1], edit="the ball is blue")
    rgb = np.asarray(Image.open(data / "images" / "0001.png")) / 255
    np.testing.assert_allclose(rgb, expected.rgb, atol=0.5 / 255 + 1e-6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scenes") / "still_life", views=10, size=32)


def test_nerfstudio_loads_the_dataset(dataset: Path) -> None:
    import nerfstudio.engine.trainer  # noqa: F401 - the dataparser cannot be imported before it
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    parser = NerfstudioDataParserConfig(data=dataset).setup()
    train, test = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("val")
    assert len(train.cameras) == 9 and len(test.cameras) == 1
    assert train.mask_filenames is None
    assert len(train.metadata["depth_filenames"]) == 9
    assert all(path.exists() for path in [*train.image_filenames, *train.metadata["depth_filenames"]])

    # Undo the parser's own change of coordinates: the cameras are the exact ones.
    camera = orbit_cameras(10, size=32)[int(train.image_filenames[4].stem)]
    pose = torch.from_numpy(np.vstack([camera.camera_to_world, [0, 0, 0, 1]]))
    expected = train.dataparser_transform.double() @ pose
    expected[:, 3] *= train.dataparser_scale
    torch.testing.assert_close(train.cameras.camera_to_worlds[4].double(), expected, atol=1e-5, rtol=0)
    assert float(train.cameras.fx[4]) == pytest.approx(camera.focal, rel=1e-5)


def test_the_ground_truth_beside_the_pictures_is_exact(dataset: Path) -> None:
    meta = json.loads((dataset / "transforms.json").read_text())
    assert meta["object_names"] == list(OBJECT_NAMES)
    assert all("mask_path" not in frame for frame in meta["frames"])
    frame = meta["frames"][3]
    picture = render(orbit_cameras(10, size=32)[3])
    depth = np.asarray(Image.open(dataset / frame["depth_file_path"]))
    assert depth.dtype == np.uint16 and depth.max() < 2**16 - 1
    np.testing.assert_allclose(depth * 1e-3, picture.depth, atol=5.1e-4)
    np.testing.assert_array_equal(Image.open(dataset / frame["objects_file_path"]), picture.objects)
    rgb = np.asarray(Image.open(dataset / frame["file_path"])) / 255
    np.testing.assert_allclose(rgb, picture.rgb, atol=0.5 / 255 + 1e-6)


def test_an_interruption_leaves_no_half_dataset(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "scene", views=4, size=8, on_view=interrupt)
    assert not (tmp_path / "scene").exists()
    write_dataset(tmp_path / "scene", views=4, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    with pytest.raises(InputError, match="there already"):
        write_dataset(tmp_path / "scene", views=4, size=8)
