"""Edits in a region, on a scene whose objects, surfaces and masks are known exactly."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nerf_runs import make_config, refusal, run, run_until_killed
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from csd_nerf.cameras import fit_cameras
from csd_nerf.errors import InputError
from csd_nerf.nerf import edit_loop
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.region import spread
from csd_nerf.nerf.region_box import RegionBox
from csd_nerf.nerf.region_hull import Hull, project
from csd_nerf.nerf.region_masks import read_mask
from csd_nerf.nerf.rendering import render_still, render_views
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.pixel_rays import PixelRays
from csd_nerf.scenes.still_life import BALL, OBJECT_NAMES, VASE

Make = Any

THINGS = [number for number, name in enumerate(OBJECT_NAMES) if name not in ("background", "table")]


@pytest.fixture(scope="module")
def scene_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for longer than the other tests' scene, for there must be surfaces."""
    config = make_config(
        "csd-nerfacto-tiny", tmp_path_factory.mktemp("scene"), dataset, max_num_iterations=200,
        timestamp="scene", pipeline__datamanager__train_num_rays_per_batch=512,
    )  # fmt: skip
    return run(config).base_dir


@pytest.fixture(scope="module")
def masked(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The still life with exact masks: white where something stands on the table."""
    folder = tmp_path_factory.mktemp("masked") / "still_life"
    shutil.copytree(dataset, folder)
    (folder / "masks").mkdir()
    for objects in (folder / "objects").iterdir():
        white = np.isin(np.asarray(Image.open(objects)), THINGS)
        Image.fromarray(white.astype(np.uint8) * 255).save(folder / "masks" / objects.name)
    meta = json.loads((folder / "transforms.json").read_text())
    for frame in meta["frames"]:
        frame["mask_path"] = f"masks/{Path(frame['file_path']).name}"
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def box_around_the_table(scene_run: Path, radius: float = 1.2) -> dict[str, Any]:
    """Options of a box around the still life's table, `radius` in the metres of its dataset."""
    matrix, scale = table(scene_run)
    center = scale * (matrix[:, :3] @ np.array([0.0, 0.0, 0.3]) + matrix[:, 3])
    yaw = math.atan2(matrix[1, 0], matrix[0, 0])
    return {
        "pipeline__region__source": "box",
        "pipeline__region__box_center": tuple(center.tolist()),
        "pipeline__region__box_size": (2 * scale * radius, 2 * scale * radius, 1.2 * scale),
        "pipeline__region__box_rotation": (0.0, 0.0, yaw),
    }


def table(scene_run: Path) -> tuple[np.ndarray, float]:
    """From the metres of the still life to scene coordinates: (3, 4), and a scale that comes after it."""
    transform = json.loads((scene_run / "dataparser_transforms.json").read_text())
    return np.array(transform["transform"]), transform["scale"]


def edit(method: str, folder: Path, scene_run: Path, data: Path | None = None, **changes: Any) -> Any:
    settings = {
        "load_dir": scene_run, "prompt": "make it night", "max_num_iterations": 8, "timestamp": "edit",
        "steps_per_save": 4, "pipeline__render_size": 32, "pipeline__picture_size": 32,
        "pipeline__picture_views": 2, "pipeline__turntable_frames": 0, "pipeline__steps_per_picture": 0,
    }  # fmt: skip
    return run(make_config(method, folder, data, **{**settings, **changes}))


def night_falls_inside_alone(pipeline: Any, source: torch.Tensor) -> None:
    """The evaluation pictures against those of the source, (V, 3, 32, 32)."""
    cameras, _ = pipeline.datamanager.eval_cameras(32, 32, len(source))
    pipeline.model.train()
    rays = PixelRays(cameras)
    inside = torch.stack(
        [
            render_still(pipeline.model, rays.of_view(index), inside=pipeline._where.contains).inside
            for index in range(len(source))
        ]
    )
    darker = source - pipeline.draw(cameras)

    def mean(values: torch.Tensor, where: torch.Tensor) -> float:
        return float((values * where).sum() / (3 * where.sum()))

    deep, far = (inside > 0.5).float(), (inside < 0.01).float()
    assert deep.sum() > 20 and far.sum() > 20
    assert mean(darker, deep) > 0.03
    assert -10 * math.log10(mean(darker.square(), far) + 1e-9) > 30


@pytest.fixture(scope="module")
def source_pictures(scene_run: Path) -> torch.Tensor:
    """Evaluation pictures (V, 3, 32, 32) of the scene by itself, as `ns-render` draws it."""
    _, pipeline, _, _ = eval_setup(scene_run / "config.yml")
    cameras = fit_cameras(pipeline.datamanager.eval_dataset.cameras, 32, 32)
    with torch.no_grad():
        pictures = [
            pipeline.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"]
            for index in range(len(cameras))
        ]
    return torch.stack(pictures).permute(0, 3, 1, 2)


# -------------------------------------------------------------------- parts


def test_a_turned_box_contains_what_its_own_axes_say() -> None:
    box = RegionBox((1.0, 2.0, 3.0), (2.0, 1.0, 0.5), (0.0, 0.0, math.radians(90)))
    offsets = torch.tensor([[0.4, 0.9, 0.2], [0.9, 0.4, 0.2], [0.0, 0.0, 0.26], [0.0, -0.99, -0.24]])
    positions = torch.tensor(box.center) + offsets
    assert box.contains(positions).tolist() == [True, False, False, True]
    assert box.contains(positions.view(2, 2, 3)).shape == (2, 2)


def test_every_beginning_of_the_views_looked_at_isspread() -> None:
    for count in (1, 2, 7, 86):
        assert sorted(spread(count)) == list(range(count))
    assert max(np.diff(sorted(spread(86)[:8]))) <= 2 * 86 / 8


# -------------------------------------------------------------------- hull


def ring(count: int, size: int, **options: Any) -> Cameras:
    """Cameras at a distance of 1 from the origin, at which they look from all sides."""
    angle = torch.arange(count) * (2 * math.pi * 0.618)
    height = torch.linspace(-0.3, 0.8, count)
    across = (1 - height.square()).sqrt()
    eyes = torch.stack([across * angle.cos(), across * angle.sin(), height], -1)
    back = F.normalize(eyes, dim=-1)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).expand_as(back), back), dim=-1)
    poses = torch.stack([right, torch.linalg.cross(back, right), back, eyes], -1)
    settings: dict[str, Any] = {"fx": 1.1 * size, "fy": 1.0 * size, "cx": 0.51 * size, "cy": 0.49 * size}
    return Cameras(poses, width=size, height=size, **{**settings, **options})


def ball_mask(cameras: Cameras, view: int, middle: torch.Tensor, radius: float) -> torch.Tensor:
    """(H, W): 1 where the ray of a pixel meets the ball."""
    rays = cameras.generate_rays(camera_indices=view, keep_shape=True)
    offset = middle - rays.origins
    along = (offset * rays.directions).sum(-1)
    return ((offset.square().sum(-1) - along.square() < radius**2) & (along > 0)).float()


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
@pytest.mark.parametrize("distortion", [None, (-0.08, 0.02, 0.0, 0.0, 0.003, -0.002)])
def test_a_position_projects_to_the_pixel_whose_ray_meets_it(kind: CameraType, distortion: Any) -> None:
    options = {"distortion_params": torch.tensor(distortion).expand(3, 6)} if distortion else {}
    cameras = ring(3, 24, camera_type=kind, **options)
    rays = cameras.generate_rays(camera_indices=1, keep_shape=True)
    positions = rays.origins + rays.directions * (0.2 + torch.rand(24, 24, 1))
    pixels, visible = project(cameras, 1, positions.view(-1, 3))
    rows, columns = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    assert visible.all()
    torch.testing.assert_close(pixels.view(24, 24, 2), torch.stack([columns, rows], -1), atol=2e-3, rtol=0)
    behind = rays.origins - rays.directions
    if kind is CameraType.PERSPECTIVE:
        assert not project(cameras, 1, behind.view(-1, 3))[1].any()


def test_far_off_the_axis_a_bent_lens_sees_nothing() -> None:
    """There x (1 + k x^2) comes back to 0: without care, such places would project into the picture."""
    cameras = ring(1, 32, distortion_params=torch.tensor([[-0.3, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    pose = cameras.camera_to_worlds[0]
    sideways = (pose[:, 3] - 0.1 * pose[:, 2] + 0.1 * math.sqrt(1 / 0.3) * pose[:, 0])[None]
    pixels, visible = project(cameras, 0, sideways)
    assert 0 < pixels[0, 0] < 32 and 0 < pixels[0, 1] < 32
    assert not visible.any()


def test_the_hull_of_a_balls_silhouettes_is_the_ball() -> None:
    cameras, middle, radius = ring(20, 128), torch.tensor([0.1, -0.05, 0.08]), 0.15
    masks = [ball_mask(cameras, view, middle, radius) for view in range(20)]
    masks[7] = torch.zeros(128, 128)  # a mistake
    hull = Hull()
    hull.carve(cameras, masks.__getitem__, spread(20), reach=2.0)
    places = torch.rand(4000, 3) * 3 - 1.5
    near = F.normalize(torch.randn(4000, 3), dim=-1)
    assert hull.contains(middle + near * 0.95 * radius * torch.rand(4000, 1)).all()
    assert not hull.contains(middle + near * radius * 1.15).any()
    far = places[(places - middle).norm(dim=-1) > 1.15 * radius]
    assert not hull.contains(far).any()
    assert hull.contains(middle.expand(2, 5, 3)).shape == (2, 5)

    again = Hull()
    again.load_state(hull.state())
    assert torch.equal(again.contains(places), hull.contains(places))


def test_something_thin_is_not_lost() -> None:
    """A ball smaller than a voxel of the grid in which the hull is first looked for."""
    cameras, middle, radius = ring(12, 128), torch.tensor([0.013, 0.021, -0.017]), 0.012
    masks = [ball_mask(cameras, view, middle, radius) for view in range(12)]
    hull = Hull()
    hull.carve(cameras, masks.__getitem__, spread(12), reach=2.0)
    assert hull.contains(middle) and not hull.contains(middle + 0.04)


def test_masks_of_different_things_have_no_volume_in_common() -> None:
    cameras = ring(12, 64)
    places = torch.tensor([[0.2, 0.0, 0.0], [-0.2, 0.0, 0.1]])
    masks = [ball_mask(cameras, view, places[view % 2], 0.05) for view in range(12)]
    with pytest.raises(InputError, match="no volume in common"):
        Hull().carve(cameras, masks.__getitem__, spread(12), reach=2.0)


def test_a_masks_pixels_are_resampled_as_its_photos(tmp_path: Path) -> None:
    """A mask of 3 : 2 in views of 1 : 1 loses its sides, and its edge becomes soft."""
    mask = np.zeros((40, 60), np.uint8)
    mask[:, :35] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    class Dataset:
        class _dataparser_outputs:
            mask_filenames = [tmp_path / "mask.png"]

    fitted = read_mask(Dataset, 0, 10, 10)  # type: ignore[arg-type]
    assert fitted.shape == (1, 10, 10)
    # Columns 10 to 50 remain, four to a pixel: 35 is a quarter into the seventh pixel.
    assert fitted[0, 5, 2] == 1 and fitted[0, 5, 9] == 0
    assert 0 < float(fitted[0, 5, 6]) < 0.6


@pytest.fixture(scope="module")
def edited_by_masks(scene_run: Path, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("masks")
    return edit("csd-edit-tiny", folder, scene_run, masked, pipeline__region__source="masks")


def test_the_hull_of_the_still_lifes_masks_holds_its_things(edited_by_masks: Any, scene_run: Path) -> None:
    """From eleven masks of 32 pixels, in each of which a ball of 30 cm is about six wide."""
    matrix, scale = table(scene_run)
    contains = edited_by_masks.pipeline._hull.contains

    def held(metres: torch.Tensor) -> float:
        scene = scale * (metres.numpy() @ matrix[:, :3].T + matrix[:, 3])
        return float(contains(torch.tensor(scene).float()).float().mean())

    within = F.normalize(torch.randn(1000, 3), dim=-1) * torch.rand(1000, 1)
    for thing in (BALL, VASE[0]):
        assert held(torch.tensor(thing.center) + 0.85 * within * torch.tensor(thing.radii)) > 0.95
    angle = torch.rand(1000) * 2 * math.pi
    rim = torch.stack([angle.cos(), angle.sin(), torch.zeros(1000)], -1) * torch.tensor([1.1, 1.1, 0.0])
    assert held(rim) < 0.05 and held(rim + torch.tensor([0.0, 0.0, 1.0])) == 0
    assert held(3 * rim) == 0


def test_in_the_hull_night_falls_and_elsewhere_the_source_is_shown(
    edited_by_masks: Any, source_pictures: torch.Tensor
) -> None:
    night_falls_inside_alone(edited_by_masks.pipeline, source_pictures)
    assert Image.open(edited_by_masks.base_dir / "pictures" / "region.png").size == (2 * 32 + 4, 2 * 32 + 4)


# -------------------------------------------------------------------- box


@pytest.fixture(scope="module")
def edited_in_box(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return edit("csd-edit-tiny", tmp_path_factory.mktemp("box"), scene_run, **box_around_the_table(scene_run))


def test_the_box_holds_the_pixels_whose_surface_lies_in_it(
    edited_in_box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the exact intersections of rays with an opaque ball that takes the place of the scene."""
    model, cameras = edited_in_box.pipeline.model.train(), edited_in_box.pipeline._edit.cameras
    middle, radius = torch.tensor([0.0, 0.0, -0.2]), 0.3

    def density(positions: torch.Tensor) -> torch.Tensor:
        return 1e3 * ((positions - middle).norm(dim=-1, keepdim=True) < radius)

    def ball(samples: Any, compute_normals: bool = False) -> dict[FieldHeadNames, torch.Tensor]:
        positions = samples.frustums.get_positions()
        return {FieldHeadNames.RGB: positions.abs(), FieldHeadNames.DENSITY: density(positions)}

    monkeypatch.setattr(model.field, "forward", ball)
    monkeypatch.setattr(model, "density_fns", [density])
    box = RegionBox((0.1, 0.0, -0.1), (0.5, 0.4, 0.4), (0.0, 0.0, 0.6))
    agree, shares = [], []
    for index in range(0, len(cameras), 3):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        inside = render_still(model, rays, inside=box.contains).inside
        offset = rays.origins - middle
        along = (offset * rays.directions).sum(-1)
        root = along.square() - offset.square().sum(-1) + radius**2
        surface = rays.origins + rays.directions * (-along - root.clamp(min=0).sqrt())[..., None]
        exact = (root > 0) & box.contains(surface)
        agree.append(((inside[0] >= 0.5) == exact).float().mean())
        shares.append(exact.float().mean())
    assert 0.1 < max(shares) < 0.5
    assert float(torch.stack(agree).mean()) > 0.97


def test_a_ray_that_misses_the_box_has_the_sources_colour_to_the_bit(
    edited_in_box: Any, source_pictures: torch.Tensor
) -> None:
    """Against the scene opened by itself, from cameras of which the edit has seen none."""
    pipeline = edited_in_box.pipeline
    model, cameras = pipeline.model, pipeline.datamanager.eval_cameras(32, 32, 100)[0]
    edited = pipeline.draw(cameras)
    for index in range(len(cameras)):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        model.eval()
        samples, _, _ = model.proposal_sampler(model.collider(rays.flatten()), density_fns=model.density_fns)
        meets = pipeline._where.contains(samples.frustums.get_positions()).any(-1).view(32, 32)
        assert 0.05 < meets.float().mean() < 0.95
        assert torch.equal(edited[index][:, ~meets], source_pictures[index][:, ~meets])
        assert not torch.equal(edited[index][:, meets], source_pictures[index][:, meets])


def test_in_the_box_night_falls_and_elsewhere_the_source_is_shown(
    edited_in_box: Any, source_pictures: torch.Tensor
) -> None:
    night_falls_inside_alone(edited_in_box.pipeline, source_pictures)


def test_an_edit_step_renders_the_edited_field_everywhere(edited_in_box: Any, monkeypatch: Any) -> None:
    """In the backward pass too, where checkpointing renders again; and pictures do not."""
    pipeline = edited_in_box.pipeline
    model, cameras = pipeline.model.train(), pipeline._edit.cameras
    model.field.eval()

    def views_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        images = render_views(model, cameras, [2], rays_per_chunk=300).images
        model.field.zero_grad()
        images.square().mean().backward()
        gradients = [value.grad for value in model.field.parameters() if value.grad is not None]
        return images.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    images, gradient = views_and_gradient()
    shown = render_still(model, cameras.generate_rays(2, keep_shape=True)).image
    monkeypatch.setattr(model.field, "forward", partial(type(model.field).forward, model.field))
    plain_images, plain_gradient = views_and_gradient()
    assert torch.equal(images, plain_images)
    torch.testing.assert_close(gradient, plain_gradient)
    assert (shown - images[0]).mean() > 0.03  # around the box it is day still


def test_a_finished_edit_opens_as_it_was_left(edited_in_box: Any, edited_by_masks: Any) -> None:
    """As `ns-viewer`, `ns-render` and `ns-eval` open it: with both fields and the region."""
    for edited in (edited_in_box, edited_by_masks):
        _, opened, _, _ = eval_setup(edited.base_dir / "config.yml")
        assert torch.equal(opened.eval_pictures(), edited.pipeline.eval_pictures())


def test_a_killed_edit_resumes_to_the_same_scene(edited_by_masks: Any, edit_config: Make) -> None:
    config = edit_config(
        data=edited_by_masks.config.data, max_num_iterations=8, steps_per_save=4,
        pipeline__turntable_frames=0, pipeline__region__source="masks",
    )  # fmt: skip
    half = run_until_killed(config, step=7)
    resumed = run(edit_config(load_dir=half, prompt=None, max_num_iterations=8, timestamp="resumed"))
    assert resumed._start_step == 5
    torch.testing.assert_close(
        resumed.pipeline.eval_pictures(), edited_by_masks.pipeline.eval_pictures(), atol=2e-3, rtol=0
    )


def test_a_box_that_is_moved_shows_the_edit_elsewhere(
    edit_config: Make, scene_run: Path, source_pictures: torch.Tensor
) -> None:
    trainer = run(
        edit_config(max_num_iterations=3, pipeline__turntable_frames=0, **box_around_the_table(scene_run))
    )
    pipeline = trainer.pipeline
    edited, was = pipeline.eval_pictures(), pipeline.box
    pipeline.move_box(replace(was, center=(0.0, 0.0, 50.0)))
    assert torch.equal(pipeline.eval_pictures(), source_pictures[:2])
    pipeline.move_box(was)
    assert torch.equal(pipeline.eval_pictures(), edited)
    assert (edited - source_pictures[:2]).abs().mean() > 0.005

    moved = replace(was, center=tuple(value + 0.2 for value in was.center))
    pipeline.move_box(moved)
    saved = pipeline.get_extra_state()
    pipeline.move_box(was)
    pipeline.set_extra_state(saved)
    assert pipeline.box == moved
    with pytest.raises(InputError, match="no volume"):
        pipeline.move_box(replace(was, size=(1.0, 0.0, 1.0)))
    assert pipeline.box == moved


# -------------------------------------------------------------------- other methods


@pytest.mark.parametrize("method", ["csd-edit-dataset", "in2n-baseline"])
def test_edits_by_the_loop_show_in_the_box_alone(
    method: str, scene_run: Path, source_pictures: torch.Tensor, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = {"pipeline__particles": 3, "pipeline__descent__steps": 3}
    if method == "in2n-baseline":
        settings = {"pipeline__sampling__steps": 4}
    shown = []
    draw, still = EditPipeline.draw, edit_loop.render_still

    def watched(self: Any, cameras: Cameras) -> torch.Tensor:
        shown.append(self.model.field.forward.everywhere)
        return draw(self, cameras)

    def watched_still(model: Any, rays: Any) -> Any:
        shown.append(model.field.forward.everywhere)
        return still(model, rays)

    monkeypatch.setattr(EditPipeline, "draw", watched)
    monkeypatch.setattr(edit_loop, "render_still", watched_still)
    trainer = edit(
        method, tmp_path, scene_run, recipe="tiny", max_num_iterations=10, pipeline__fits_per_round=5,
        pipeline__datamanager__train_num_rays_per_batch=256, **settings, **box_around_the_table(scene_run),
    )  # fmt: skip
    # Pictures of before and after show the region, what is edited is the whole: two rounds of these views.
    assert shown == [False, *[True] * (2 * trainer.config.pipeline.particles), False]
    pipeline = trainer.pipeline
    cameras = pipeline.datamanager.eval_cameras(32, 32, 1)[0]
    edited = pipeline.draw(cameras)
    pipeline.move_box(replace(pipeline.box, center=(0.0, 0.0, 50.0)))
    assert torch.equal(pipeline.draw(cameras)[0], source_pictures[0])
    assert (edited[0] - source_pictures[0]).abs().mean() > 1e-3


# -------------------------------------------------------------------- colours alone


@pytest.mark.parametrize("in_a_box", [False, True])
def test_frozen_geometry_stays_to_the_bit(edit_config: Make, scene_run: Path, in_a_box: bool) -> None:
    region = box_around_the_table(scene_run) if in_a_box else {}
    trainer = run(
        edit_config(
            max_num_iterations=4, pipeline__freeze_geometry=True, pipeline__turntable_frames=0, **region
        )
    )
    pipeline = trainer.pipeline
    model = pipeline.model.eval()
    camera = pipeline._edit.cameras[0:1]
    names = ("depth", "expected_depth", "accumulation")
    edited = model.get_outputs_for_camera(camera)
    pipeline.reset_to_source()
    source = model.eval().get_outputs_for_camera(camera)
    kept, was = ({name: outputs[name] for name in names} for outputs in (edited, source))
    torch.testing.assert_close(kept, was, atol=0, rtol=0)
    assert (edited["rgb"] - source["rgb"]).abs().mean() > 0.005

    before = read_checkpoint(find_run(scene_run).checkpoint)["pipeline"]
    after = read_checkpoint(find_run(trainer.base_dir).checkpoint)["pipeline"]
    for name, value in before.items():
        if name.startswith("_model.proposal_networks."):
            assert torch.equal(after[name], value), name
        if name.startswith("_model.field."):
            assert torch.equal(after[name.replace("field", "source_field", 1)], value), name


# -------------------------------------------------------------------- bad input


def test_options_of_a_region_that_contradict_each_other(edit_config: Make, capsys: Any) -> None:
    def refused(**region: Any) -> str:
        changes = {f"pipeline__region__{name}": value for name, value in region.items()}
        return refusal(edit_config(**changes), capsys)

    assert "--pipeline.region.box-size" in refused(box_size=(1.0, 1.0, 1.0))
    assert "--pipeline.region.box-center" in refused(source="masks", box_center=(0.0, 0.0, 0.0))
    assert "allow-empty-masks" in refused(source="box", allow_empty_masks=True)
    assert "no --pipeline.region.box-size" in refused(source="box", box_center=(0.0, 0.0, 0.0))
    flat = {"source": "box", "box_center": (0.0, 0.0, 0.0), "box_size": (1.0, 0.0, 1.0)}
    assert "no volume" in refused(**flat)


def test_a_box_in_which_there_is_nothing(edit_config: Make, scene_run: Path, capsys: Any) -> None:
    far = {**box_around_the_table(scene_run), "pipeline__region__box_center": (50.0, 0.0, 90.0)}
    printed = refusal(edit_config(**far), capsys)
    assert "nothing of the scene lies in the box" in printed and "50 0 90" in printed


def test_masks_that_cannot_be_used(
    edit_config: Make, dataset: Path, masked: Path, tmp_path: Path, capsys: Any
) -> None:
    def refused(data: Path, **changes: Any) -> str:
        return refusal(edit_config(data=data, pipeline__region__source="masks", **changes), capsys)

    assert "has no masks" in refused(dataset)
    copied = tmp_path / "copied"
    shutil.copytree(masked, copied)
    files = sorted((copied / "masks").iterdir())
    blacks = [Image.new("L", (32, 32)), Image.new("L", (32, 32), 1)]  # 1: a label, not white
    blacks[0].save(files[3])
    blacks[1].save(files[4])
    printed = refused(copied)
    assert "2 of 11 masks have no white" in printed and files[3].name in printed
    assert "nothing brighter than 1" in printed and "allow-empty-masks" in printed
    run(
        edit_config(
            data=copied, max_num_iterations=1, pipeline__turntable_frames=0,
            pipeline__region__source="masks", pipeline__region__allow_empty_masks=True,
        )
    )  # fmt: skip
    for file in files:
        blacks[0].save(file)
    assert "are all black" in refused(copied, pipeline__region__allow_empty_masks=True)
    Image.new("L", (16, 32), 255).save(files[3])
    printed = refused(copied)
    assert "another size" in printed and "16 x 32" in printed and "32 x 32" in printed
    files[3].write_bytes(b"not a picture")
    assert "cannot be read" in refused(copied)
    meta = json.loads((copied / "transforms.json").read_text())
    del meta["frames"][5]["mask_path"]
    (copied / "transforms.json").write_text(json.dumps(meta))
    assert "11 of 12 frames with one" in refused(copied)


def test_an_edit_keeps_its_kind_of_region(edit_config: Make, scene_run: Path, capsys: Any) -> None:
    trainer = run(edit_config(max_num_iterations=1, pipeline__turntable_frames=0))
    again = {"load_dir": trainer.base_dir, "prompt": None}
    assert "--pipeline.freeze-geometry" in refusal(
        edit_config(pipeline__freeze_geometry=True, **again), capsys
    )
    printed = refusal(edit_config(**box_around_the_table(scene_run), **again), capsys)
    assert "--pipeline.region.source none, as it was begun with" in printed
