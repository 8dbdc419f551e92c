"""Edits in a region, on a scene whose objects, surfaces and masks are known exactly."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerf_runs import make_config, run
from nerfstudio.field_components.field_heads import FieldHeadNames
from PIL import Image
from test_bad_input import refusal

from csd_nerf.distillation.objective import Distilled, Objective
from csd_nerf.nerf.region import RegionViews, _spread, read_mask
from csd_nerf.nerf.region_box import Box
from csd_nerf.nerf.rendering import render_still
from csd_nerf.scenes.still_life import OBJECT_NAMES

Make = Any

THINGS = [number for number, name in enumerate(OBJECT_NAMES) if name not in ("background", "table")]


@pytest.fixture(scope="module")
def scene_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for longer than the other tests' scene, for there must be surfaces."""
    config = make_config(
        "csd-nerfacto-tiny", tmp_path_factory.mktemp("scene"), dataset, max_num_iterations=300,
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
    transform = json.loads((scene_run / "dataparser_transforms.json").read_text())
    matrix, scale = np.array(transform["transform"]), transform["scale"]
    center = scale * (matrix[:, :3] @ np.array([0.0, 0.0, 0.3]) + matrix[:, 3])
    yaw = math.atan2(matrix[1, 0], matrix[0, 0])
    return {
        "pipeline__region__source": "box",
        "pipeline__region__box_center": tuple(center.tolist()),
        "pipeline__region__box_size": (2 * scale * radius, 2 * scale * radius, 1.2 * scale),
        "pipeline__region__box_rotation": (0.0, 0.0, yaw),
    }


def renders(pipeline: Any, indices: list[int]) -> torch.Tensor:
    """Training views of the scene as it is now, without the jitter of a training step."""
    pipeline.model.train()
    return torch.stack(
        [render_still(pipeline.model, pipeline._edit.cameras, index).image for index in indices]
    )


def outside_of(views: RegionViews) -> torch.Tensor:
    return (views.inside < 0.01).float()


# -------------------------------------------------------------------- parts


def test_a_turned_box_contains_what_its_own_axes_say() -> None:
    box = Box((1.0, 2.0, 3.0), (2.0, 1.0, 0.5), (0.0, 0.0, math.radians(90)))
    offsets = torch.tensor([[0.4, 0.9, 0.2], [0.9, 0.4, 0.2], [0.0, 0.0, 0.26], [0.0, -0.99, -0.24]])
    positions = torch.tensor(box.center) + offsets
    assert box.contains(positions).tolist() == [True, False, False, True]
    assert box.contains(positions.view(2, 2, 3)).shape == (2, 2)


def test_what_is_computed_from_a_composite_sends_nothing_outside() -> None:
    """However wide the receptive field: here the answer depends on every pixel of the image."""
    inside = torch.zeros(1, 1, 4, 4)
    inside[..., 1:3, 1:3] = 1
    inside[..., 0, 0] = 0.25
    images = torch.rand(1, 3, 4, 4, requires_grad=True)
    views = RegionViews(inside, torch.rand(1, 3, 4, 4))
    composite = views.composite(images)
    torch.testing.assert_close(composite[..., 1:3, 1:3], images[..., 1:3, 1:3])
    torch.testing.assert_close(composite[..., 3, :], views.source[..., 3, :])
    composite.sum().square().backward()
    assert images.grad is not None
    torch.testing.assert_close(
        images.grad, (2 * composite.sum() * inside).expand_as(images).detach(), rtol=1e-4, atol=1e-4
    )


def test_change_outside_counts_the_outside_alone() -> None:
    inside = torch.tensor([1.0, 0.0, 0.5, 0.0]).view(1, 1, 2, 2)
    source = torch.zeros(1, 3, 2, 2)
    images = torch.tensor([1.0, 0.2, 0.4, 0.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    change = RegionViews(inside, source).change_outside(images)
    assert float(change) == pytest.approx((0.2**2 + 0.5 * 0.4**2) / 4)


def test_every_beginning_of_the_views_looked_at_is_spread() -> None:
    for count in (1, 2, 7, 86):
        assert sorted(_spread(count)) == list(range(count))
    assert max(np.diff(sorted(_spread(86)[:8]))) <= 2 * 86 / 8


# -------------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def edited_by_masks(scene_run: Path, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(
        make_config(
            "csd-edit-tiny", tmp_path_factory.mktemp("masks"), masked, load_dir=scene_run,
            prompt="make it night", max_num_iterations=12, timestamp="edit", steps_per_save=5,
            pipeline__region__source="masks", pipeline__render_size=32, pipeline__picture_size=32,
            pipeline__picture_views=2, pipeline__turntable_frames=0, pipeline__steps_per_picture=0,
        )
    )  # fmt: skip


def test_masks_are_those_of_the_dataset(edited_by_masks: Any, masked: Path) -> None:
    pipeline = edited_by_masks.pipeline
    dataset = pipeline.datamanager.train_dataset
    views = pipeline._edit.region([0, 3])
    for view, index in enumerate((0, 3)):
        objects = masked / "objects" / dataset.image_filenames[index].name
        expected = torch.from_numpy(np.isin(np.asarray(Image.open(objects)), THINGS)).float()
        torch.testing.assert_close(views.inside[view, 0].cpu(), expected)
    assert Image.open(edited_by_masks.base_dir / "pictures" / "region.png").size == (2 * 32 + 4, 2 * 32 + 4)


def test_inside_the_masks_night_falls_and_outside_the_source_stays(edited_by_masks: Any) -> None:
    pipeline = edited_by_masks.pipeline
    indices = list(range(8))
    views = pipeline._edit.region(indices)
    now = renders(pipeline, indices)
    outside = outside_of(views)

    def darker_where(where: torch.Tensor) -> float:
        return float(((views.source - now) * where).sum() / (3 * where.sum()))

    assert darker_where((views.inside > 0.99).float()) > 0.03 + abs(darker_where(outside))
    assert float(((now - views.source).abs() * outside).sum() / (3 * outside.sum())) < 0.05


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


# -------------------------------------------------------------------- box


@pytest.fixture(scope="module")
def edited_in_box(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(
        make_config(
            "csd-edit-tiny", tmp_path_factory.mktemp("box"), None, load_dir=scene_run,
            prompt="make it night", max_num_iterations=12, timestamp="edit", steps_per_save=5,
            pipeline__render_size=32, pipeline__picture_size=32, pipeline__picture_views=2,
            pipeline__turntable_frames=0, pipeline__steps_per_picture=0, **box_around_the_table(scene_run),
        )
    )  # fmt: skip


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
    box = Box((0.1, 0.0, -0.1), (0.5, 0.4, 0.4), (0.0, 0.0, 0.6))
    agree, shares = [], []
    for index in range(0, len(cameras), 3):
        inside = render_still(model, cameras, index, inside=box.contains).inside
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        offset = rays.origins - middle
        along = (offset * rays.directions).sum(-1)
        root = along.square() - offset.square().sum(-1) + radius**2
        surface = rays.origins + rays.directions * (-along - root.clamp(min=0).sqrt())[..., None]
        exact = (root > 0) & box.contains(surface)
        agree.append(((inside[0] >= 0.5) == exact).float().mean())
        shares.append(exact.float().mean())
    assert min(shares) > 0.02 and max(shares) < 0.5
    assert float(torch.stack(agree).mean()) > 0.97


def test_outside_the_box_the_field_is_the_sources_to_the_bit(edited_in_box: Any) -> None:
    pipeline = edited_in_box.pipeline
    rays = pipeline._edit.cameras.generate_rays(camera_indices=0, keep_shape=True).flatten()[::7]
    pipeline.model.eval()
    samples, _, _ = pipeline.model.proposal_sampler(
        pipeline.model.collider(rays), density_fns=pipeline.model.density_fns
    )
    with torch.no_grad():
        joined = pipeline.model.field(samples)
        source = pipeline.model.source_field(samples)
    belongs = pipeline._box.contains(samples.frustums.get_positions())
    assert belongs.any() and not belongs.all()
    for name in source:
        assert torch.equal(joined[name][~belongs], source[name][~belongs])
        assert not torch.equal(joined[name][belongs], source[name][belongs])


def test_inside_the_box_night_falls_and_outside_the_source_stays(edited_in_box: Any) -> None:
    pipeline = edited_in_box.pipeline
    indices = list(range(8))
    views = pipeline._edit.region(indices)
    now = renders(pipeline, indices)
    inside, outside = (views.inside > 0.5).float(), outside_of(views)
    darker = float(((views.source - now) * inside).sum() / (3 * inside.sum()))
    squared = float(((now - views.source).square() * outside).sum() / (3 * outside.sum()))
    assert darker > 0.03
    assert -10 * math.log10(squared) > 30


def test_a_finished_edit_opens_as_it_was_left(edited_in_box: Any) -> None:
    """As `ns-viewer`, `ns-render` and `ns-eval` open it: the checkpoint holds both fields and the box."""
    script = (
        "import sys, torch; from pathlib import Path; from nerfstudio.utils.eval_utils import eval_setup\n"
        f"_, pipeline, _, _ = eval_setup(Path({str(edited_in_box.base_dir / 'config.yml')!r}))\n"
        f"torch.save(pipeline.eval_pictures(), {str(edited_in_box.base_dir / 'opened.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    opened = torch.load(edited_in_box.base_dir / "opened.pt")
    torch.testing.assert_close(opened, edited_in_box.pipeline.eval_pictures())


def test_a_killed_edit_in_a_box_resumes_to_the_same_scene(edited_in_box: Any, edit_config: Make) -> None:
    half = run(edit_config(
        max_num_iterations=6, pipeline__turntable_frames=0, pipeline__rays_per_chunk=4096,
        **{f"pipeline__region__{name}": value
           for name, value in vars(edited_in_box.config.pipeline.region).items()},
    ))  # fmt: skip
    resumed = run(
        edit_config(load_dir=half.base_dir, prompt=None, max_num_iterations=12, timestamp="resumed")
    )
    assert resumed._start_step == 6
    torch.testing.assert_close(
        resumed.pipeline.eval_pictures(), edited_in_box.pipeline.eval_pictures(), atol=2e-3, rtol=0
    )


def test_the_viewer_moves_the_box(edit_config: Make, scene_run: Path) -> None:
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    trainer = run(edit_config(max_num_iterations=1, **box_around_the_table(scene_run)))
    pipeline = trainer.pipeline
    names = {element.name for _, element in parse_object(pipeline, ViewerElement, "Custom Elements")}
    assert {"Box center", "Box size", "Box rotation", "Box from Crop Viewport"} <= names
    before = pipeline._edit.region([0]).inside
    was = pipeline._box.box
    pipeline.box_center.value = tuple(value + 0.2 for value in was.center)
    assert pipeline._box.box == was  # until the next step
    pipeline.get_train_loss_dict(1)
    assert pipeline._box.box.center == pytest.approx([value + 0.2 for value in was.center])
    assert not torch.equal(pipeline._edit.region([0]).inside, before)

    saved, moved = pipeline.get_extra_state(), pipeline._box.box
    pipeline.box_center.value = was.center
    pipeline.set_extra_state(saved)
    assert pipeline._box.box == moved


def test_the_box_comes_from_the_viewers_crop(edit_config: Make, scene_run: Path) -> None:
    """With the class that nerfstudio's Crop Viewport describes its box with."""
    from nerfstudio.data.scene_box import OrientedBox

    from csd_nerf.nerf.region_box import BoxControls

    controls = BoxControls(Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    crop = OrientedBox.from_params((0.1, 0.2, 0.3), (0.2, -0.4, 0.5), (0.6, 0.8, 0.4))

    class Viewer:
        class control_panel:
            crop_obb = crop

    controls._viewer.viewer = Viewer  # type: ignore[assignment]
    controls.elements["box_from_crop"].cb_hook(None)
    controls.apply()
    positions = torch.rand(1000, 3) * 1.5 - 0.5
    assert torch.equal(controls.contains(positions), crop.within(positions))


# -------------------------------------------------------------------- colours alone


@pytest.mark.parametrize("in_a_box", [False, True])
def test_frozen_geometry_stays_to_the_bit(edit_config: Make, scene_run: Path, in_a_box: bool) -> None:
    region = box_around_the_table(scene_run) if in_a_box else {}
    trainer = run(edit_config(max_num_iterations=6, pipeline__freeze_geometry=True, **region))
    pipeline = trainer.pipeline
    model = pipeline.model.eval()
    camera = pipeline._edit.cameras[0:1]
    names = ("depth", "expected_depth", "accumulation")
    edited = model.get_outputs_for_camera(camera)
    pipeline.reset.cb_hook(pipeline.reset)
    source = model.eval().get_outputs_for_camera(camera)
    assert all(torch.equal(edited[name], source[name]) for name in names)
    assert (edited["rgb"] - source["rgb"]).abs().mean() > 0.005

    from csd_nerf.nerf.runs import find_run, read_checkpoint

    before = read_checkpoint(find_run(scene_run).checkpoint)["pipeline"]
    after = read_checkpoint(find_run(trainer.base_dir).checkpoint)["pipeline"]
    for name, value in before.items():
        if name.startswith("_model.proposal_networks."):
            assert torch.equal(after[name], value)
        if name.startswith("_model.field."):
            assert torch.equal(after[name.replace("field", "source_field", 1)], value)


# -------------------------------------------------------------------- bad input


def test_options_of_a_region_that_contradict_each_other(edit_config: Make, capsys: Any) -> None:
    def refused(**region: Any) -> str:
        changes = {f"pipeline__region__{name}": value for name, value in region.items()}
        return refusal(edit_config(**changes), capsys)

    assert "--pipeline.region.box-size" in refused(box_size=(1.0, 1.0, 1.0))
    assert "--pipeline.region.box-center" in refused(source="masks", box_center=(0.0, 0.0, 0.0))
    assert "--pipeline.region.preservation" in refused(preservation=5.0)
    assert "allow-empty-masks" in refused(source="box", allow_empty_masks=True)
    assert "no --pipeline.region.box-size" in refused(source="box", box_center=(0.0, 0.0, 0.0))
    assert "preservation cannot be used" in refused(source="masks", preservation=-1.0)
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
    assert "11 of 11" in refused(copied, pipeline__region__allow_empty_masks=True)
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


def test_a_prior_is_shown_the_source_outside(edit_config: Make, scene_run: Path, monkeypatch: Any) -> None:
    """What is encoded is the composite, and the distillation alone changes nothing outside."""
    seen: dict[str, Any] = {}
    gradient_of = Objective.gradient

    def watched(self: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Distilled:
        seen["latents"] = latents
        return gradient_of(self, latents, *args, **kwargs)

    trainer = run(
        edit_config(
            max_num_iterations=3, pipeline__region__preservation=0.0, **box_around_the_table(scene_run)
        )
    )
    pipeline = trainer.pipeline
    monkeypatch.setattr(Objective, "gradient", watched)
    losses = pipeline.get_train_loss_dict(3)[1]
    assert float(losses["preservation"].detach()) == 0
    torch.manual_seed(pipeline._edit.seed * 1_000_003 + 3)
    indices = pipeline._edit.sampler(3)
    views = pipeline._render(indices)
    with torch.no_grad():
        composite = pipeline._edit.region(indices).composite(views.images)
        expected = pipeline._edit.prior.encode(composite)
    torch.testing.assert_close(seen["latents"], expected)
