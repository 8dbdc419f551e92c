"""Edits that replace training pictures: schedule, resume, reset, losses, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed

from csd_nerf.cameras import fit_cameras
from csd_nerf.nerf.runs import find_run
from csd_nerf.nerf.training_pictures import TrainingPictures, as_bytes

Make = Any
METHODS = ["csd-edit-dataset", "in2n-baseline"]


@pytest.fixture
def small(edit_config: Make) -> Make:
    """Configurations of small edits of both kinds: three updates in twelve steps."""

    def make(method: str, **changes: Any) -> Any:
        settings = {
            "recipe": "tiny",
            "max_num_iterations": 12,
            "steps_per_save": 6,
            "pipeline__steps_per_update": 4,
            "pipeline__steps_per_picture": 0,
            "pipeline__turntable_frames": 0,
            "pipeline__datamanager__train_num_rays_per_batch": 256,
        }
        if method == "csd-edit-dataset":
            settings |= {"pipeline__views_per_update": 3, "pipeline__descent__steps": 2}
        else:
            settings |= {"pipeline__sampling__steps": 3}
        return edit_config(method, **{**settings, **changes})

    return make


@pytest.fixture
def updates(monkeypatch: Any) -> list[tuple[int, list[int]]]:
    """The updates of the edits that run in a test: step, and the indices of the views."""
    from csd_nerf.nerf.dataset_pipeline import DatasetEditPipeline

    seen: list[tuple[int, list[int]]] = []
    update = DatasetEditPipeline._update

    def recorded(self: Any, indices: list[int], step: int) -> None:
        seen.append((step, indices))
        update(self, indices, step)

    monkeypatch.setattr(DatasetEditPipeline, "_update", recorded)
    return seen


@pytest.mark.parametrize(("method", "views"), [("csd-edit-dataset", 3), ("in2n-baseline", 1)])
def test_views_are_edited_on_schedule_and_each_before_any_again(
    method: str, views: int, small: Make, updates: list[tuple[int, list[int]]]
) -> None:
    trainer = run(small(method))
    assert [step for step, _ in updates] == [0, 4, 8]
    edited = [index for _, indices in updates for index in indices]
    assert len(set(edited)) == len(edited) == 3 * views
    pictures = trainer.pipeline._pictures
    assert pictures.edited == set(edited)
    changed = (pictures.pictures != pictures.photos).flatten(1).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) == set(edited)

    first = list(updates)
    updates.clear()
    run(small(method, timestamp="again"))
    assert updates == first
    updates.clear()
    run(small(method, timestamp="other", machine__seed=7))
    assert updates != first


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_edit_resumes_to_the_same_scene_and_pictures(method: str, small: Make) -> None:
    whole = run(small(method)).pipeline
    folder = run_until_killed(small(method, timestamp="killed"), step=10)
    assert find_run(folder).checkpoint.name == "step-000000006.ckpt"

    resumed = run(small(method, load_dir=folder, prompt=None, timestamp="resumed"))
    assert resumed._start_step == 7
    pipeline = resumed.pipeline
    assert torch.equal(pipeline._pictures.pictures, whole._pictures.pictures)
    torch.testing.assert_close(pipeline.eval_pictures(), whole.eval_pictures(), atol=1e-4, rtol=0)
    assert pipeline.unet_evaluations == whole.unet_evaluations


@pytest.mark.parametrize(("method", "each"), [("csd-edit-dataset", 5 * 3 * 2), ("in2n-baseline", 3 * 3)])
def test_unet_evaluations_are_counted_and_saved(method: str, each: int, small: Make) -> None:
    trainer = run(small(method, max_num_iterations=5))
    pipeline = trainer.pipeline
    assert pipeline.unet_evaluations == 2 * each
    metrics = [pipeline.get_train_loss_dict(step)[2] for step in (7, 8)]
    assert [int(metric["unet_evaluations"]) for metric in metrics] == [0, each]
    assert [int(metric["unet_evaluations_total"]) for metric in metrics] == [2 * each, 3 * each]
    saved = torch.load(find_run(trainer.base_dir).checkpoint)["pipeline"]
    assert saved["_extra_state"]["unet_evaluations"] == 2 * each


def test_csd_edit_counts_the_same_way(edit_config: Make) -> None:
    pipeline = run(edit_config(max_num_iterations=2)).pipeline
    assert pipeline.unet_evaluations == 2 * 4 * 5
    metrics = pipeline.get_train_loss_dict(2)[2]
    assert (int(metrics["unet_evaluations"]), int(metrics["unet_evaluations_total"])) == (20, 60)


def test_the_scene_moves_towards_its_edited_pictures(small: Make) -> None:
    settings = {"max_num_iterations": 60, "pipeline__steps_per_update": 5, "pipeline__sampling__steps": 10}
    pipeline = run(small("in2n-baseline", **settings)).pipeline
    assert len(pipeline._pictures.edited) == len(pipeline._pictures.photos) >= 10
    before, after = pipeline._edit.before, pipeline.eval_pictures()
    assert after.mean() < before.mean() - 0.05
    assert after[:, 2].mean() > after[:, 0].mean()  # night is blue


def test_no_noise_leaves_the_renders_as_training_pictures(small: Make) -> None:
    """Instruct-NeRF2NeRF at strength 0: what is put back is what was drawn, but for the autoencoder."""
    strengths = {"pipeline__sampling__min_timestep": 0.0, "pipeline__sampling__max_timestep": 0.0}
    pipeline = run(small("in2n-baseline", max_num_iterations=1, **strengths)).pipeline
    (index,) = pipeline._pictures.edited
    assert pipeline.unet_evaluations == 0
    prior, edit = pipeline._edit.prior, pipeline._edit
    pipeline._reset_to_source()
    drawn = pipeline.draw(edit.cameras[torch.tensor([index])])
    pipeline._update([index], 0)
    expected = as_bytes(prior.decode(prior.encode(drawn)))[0].float()
    torch.testing.assert_close(pipeline._pictures.pictures[index].float(), expected, atol=1, rtol=0)


def test_the_edited_scene_opens_without_a_diffusion_model(small: Make, scene_run: Path) -> None:
    trainer = run(small("csd-edit-dataset", max_num_iterations=2))
    checkpoint = find_run(trainer.base_dir).checkpoint
    scene, edit = (torch.load(file)["pipeline"] for file in (find_run(scene_run).checkpoint, checkpoint))
    assert edit.keys() - {"_extra_state"} == scene.keys()
    pictures = edit["_extra_state"]["pictures"]["pictures"]
    assert pictures.dtype == torch.uint8 and len(pictures) == len(trainer.pipeline._pictures.edited)
    script = (
        "import sys; from pathlib import Path; from nerfstudio.utils.eval_utils import eval_setup\n"
        f"_, pipeline, _, step = eval_setup(Path({str(trainer.base_dir / 'config.yml')!r}))\n"
        "assert step == 1 and pipeline.get_average_eval_image_metrics()['psnr'] > 3\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_reset_puts_photos_and_scene_back(small: Make) -> None:
    trainer = run(small("in2n-baseline", max_num_iterations=6))
    pipeline = trainer.pipeline
    pipeline.reset.cb_hook(pipeline.reset)
    torch.testing.assert_close(pipeline.eval_pictures(), pipeline._edit.before)
    assert not pipeline._pictures.edited
    assert torch.equal(pipeline._pictures.pictures, pipeline._pictures.photos)


def test_samples_are_the_pixels_of_the_pictures(small: Make) -> None:
    """Patches lie row by row in one picture; rays go through the pixels whose colours come with them."""
    pipeline = run(small("in2n-baseline", max_num_iterations=1)).pipeline
    count, size = len(pipeline._pictures.photos), 32
    cameras = fit_cameras(pipeline.datamanager.train_dataset.cameras, size, size)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    number = torch.arange(count)[:, None, None].expand(-1, size, size)
    coded = torch.stack([number, row.expand_as(number), column.expand_as(number)], dim=-1).byte()
    pictures = TrainingPictures(coded, cameras)
    rays, colours = pictures.sample(2 * 8 * 8 + 5, patch_size=8)
    camera, y, x = (colours * 255).round().long().unbind(1)
    assert len(rays) == 128
    for values, offset in ((y, row), (x, column)):
        patches = values.view(2, 8, 8)
        assert torch.equal(patches - patches[:, :1, :1], offset[:8, :8].expand(2, -1, -1))
    whole = [cameras.generate_rays(camera_indices=i, keep_shape=True) for i in range(count)]
    expected = torch.stack([whole[i].directions[j, k] for i, j, k in zip(camera, y, x, strict=True)])
    torch.testing.assert_close(rays.directions, expected)
    assert torch.equal(rays.camera_indices[:, 0], camera)


def _give(monkeypatch: Any, *options: str) -> None:
    """As if options were in the command line: with their usual values, here, which a recipe would change."""
    monkeypatch.setattr(sys, "argv", ["ns-train", *options])


def test_lpips_trains_where_its_weights_are(
    small: Make, shared: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    subprocess.run([sys.executable, shared / "tools" / "offline_lpips.py", tmp_path / "torch"], check=True)
    _give(monkeypatch, "--pipeline.datamanager.patch-size", "--pipeline.lpips-weight")
    rays = {"pipeline__datamanager__train_num_rays_per_batch": 1024}
    pipeline = run(small("in2n-baseline", max_num_iterations=1, **rays)).pipeline
    assert (pipeline.config.lpips_weight, pipeline.config.datamanager.patch_size) == (1.0, 32)
    losses = pipeline.get_train_loss_dict(1)[1]
    assert losses["lpips_loss"] > 0 and losses["lpips_loss"].requires_grad
    colours = torch.rand(1024, 3)
    assert pipeline._lpips(colours, colours, 32) == 0
    assert not any("lpips" in name for name in pipeline.state_dict())


def test_lpips_without_weights_is_refused(small: Make, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    _give(monkeypatch, "--pipeline.datamanager.patch-size", "--pipeline.lpips-weight")
    assert "--pipeline.lpips-weight 0" in refusal(small("in2n-baseline"), capsys)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("csd-edit-dataset", {"pipeline__views_per_update": 99}, "--pipeline.views-per-update 4"),
        ("csd-edit-dataset", {"pipeline__steps_per_update": 0}, "--pipeline.steps-per-update"),
        ("csd-edit-dataset", {"pipeline__descent__learning_rate": -1.0}, "--pipeline.descent.learning-rate"),
        ("csd-edit-dataset", {"pipeline__objective__residual": "dds"}, "--pipeline.source-prompt"),
        ("in2n-baseline", {"pipeline__sampling__steps": 0}, "--pipeline.sampling.steps"),
        ("in2n-baseline", {"pipeline__sampling__min_timestep": 0.99}, "range of timesteps"),
        ("in2n-baseline", {"pipeline__lpips_weight": 0.5}, "at least 32, for LPIPS"),
        ("in2n-baseline", {"pipeline__lpips_weight": -1.0}, "--pipeline.lpips-weight"),
        ("in2n-baseline", {"pipeline__datamanager__patch_size": 64}, "at most the render size"),
        ("in2n-baseline", {"pipeline__datamanager__train_num_rays_per_batch": 0}, "train-num-rays"),
    ],
)
def test_bad_input(method: str, changes: dict[str, Any], said: str, small: Make, capsys: Any) -> None:
    assert said in refusal(small(method, **changes), capsys)


def test_a_text_to_image_model_is_refused(small: Make, text_to_image_folder: Path, capsys: Any) -> None:
    for method in METHODS:
        assert "text-to-image" in refusal(small(method, pipeline__prior=str(text_to_image_folder)), capsys)


def test_another_render_size_cannot_go_on_with_the_pictures(small: Make, capsys: Any) -> None:
    folder = run(small("in2n-baseline", max_num_iterations=2)).base_dir
    changes = {"load_dir": folder, "prompt": None, "pipeline__render_size": 24}
    assert "--pipeline.render-size" in refusal(small("in2n-baseline", **changes), capsys)
