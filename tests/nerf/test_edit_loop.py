"""The loop of every edit: schedule, resume, reset, targets, losses, alarms, and what is refused."""

from __future__ import annotations

import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from csd_nerf.cameras import fit_cameras
from csd_nerf.nerf.edit_loop import NoOpAlarm, draw
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.rendering import render_still
from csd_nerf.nerf.runs import find_run
from csd_nerf.nerf.targets import Targets, as_bytes
from csd_nerf.pixel_rays import PixelRays

Make = Any
DATASET_METHODS = ["csd-edit-dataset", "in2n-baseline"]
METHODS = ["csd-edit", "dds-edit", "cds-edit", "pds-edit", "sds-edit", *DATASET_METHODS, "refit-baseline"]
PER_ROUND = {"csd-edit": 3 * 2 * 5, "csd-edit-dataset": 3 * 2 * 5, "in2n-baseline": 3 * 3}


@pytest.fixture
def small(edit_config: Make) -> Make:
    """Configurations of small edits of all kinds: three rounds in twelve steps, or one."""

    def make(method: str, **changes: Any) -> Any:
        settings = {
            "recipe": "tiny",
            "max_num_iterations": 12,
            "steps_per_save": 6,
            "pipeline__steps_per_picture": 0,
            "pipeline__turntable_frames": 0,
            "pipeline__datamanager__train_num_rays_per_batch": 256,
        }
        if method != "refit-baseline":
            settings["pipeline__fits_per_round"] = 4
        if method in ("in2n-baseline", "refit-baseline"):
            settings["pipeline__sampling__steps"] = 3
        else:
            settings |= {"pipeline__particles": 3, "pipeline__descent__steps": 2}
        if method == "cds-edit":
            settings["pipeline__objective__structure__patch_sizes"] = (1,)  # its maps are small, too
        if method.split("-")[0] in ("dds", "cds", "pds"):
            settings["pipeline__source_prompt"] = "a photo"
        return edit_config(method, **{**settings, **changes})

    return make


@pytest.fixture
def rounds(monkeypatch: Any) -> list[tuple[int, list[int]]]:
    """The rounds of the edits that run in a test: number, and the indices of the views."""
    seen: list[tuple[int, list[int]]] = []
    begin = EditPipeline._begin_round

    def recorded(self: Any, edit: Any, number: int) -> None:
        begin(self, edit, number)
        seen.append((number, edit.sampler(number)))

    monkeypatch.setattr(EditPipeline, "_begin_round", recorded)
    return seen


@pytest.mark.parametrize(
    ("method", "views"), [("csd-edit", 3), ("csd-edit-dataset", 3), ("in2n-baseline", 1)]
)
def test_views_are_edited_on_schedule_and_each_before_any_again(
    method: str, views: int, small: Make, rounds: list[tuple[int, list[int]]]
) -> None:
    trainer = run(small(method))
    assert [number for number, _ in rounds] == [0, 1, 2]
    edited = [index for _, indices in rounds for index in indices]
    assert len(set(edited)) == len(edited) == 3 * views
    targets = trainer.pipeline._edit.targets
    assert targets.edited == set(edited) and targets.views[-len(edited) :] == edited  # the newest last
    if method in DATASET_METHODS:
        assert sorted(targets.views) == list(range(len(targets.photos)))
        photos = targets.photos[targets.views]
        changed = (targets.pictures != photos).flatten(1).any(1)
        assert {targets.views[row] for row in changed.nonzero()[:, 0]} == set(edited)
    steps = {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for name, optimizer in trainer.optimizers.optimizers.items()
        if name in ("fields", "proposal_networks")
    }
    assert steps == {"fields": {12}, "proposal_networks": {3}}  # of twelve every fifth, as nerfacto does

    first = list(rounds)
    rounds.clear()
    run(small(method, timestamp="again"))
    assert rounds == first
    rounds.clear()
    run(small(method, timestamp="other", machine__seed=7))
    assert rounds != first


def test_only_the_newest_views_are_kept(small: Make, rounds: list[tuple[int, list[int]]]) -> None:
    targets = run(small("csd-edit", pipeline__kept_views=4)).pipeline._edit.targets
    edited = [index for _, indices in rounds for index in indices]
    assert targets.views == edited[-4:] and len(targets.pictures) == 4


def test_refit_edits_every_view_once_before_the_first_fit(
    small: Make, rounds: list[tuple[int, list[int]]]
) -> None:
    pipeline = run(small("refit-baseline")).pipeline
    count = len(pipeline.datamanager.train_dataset)
    ((number, indices),) = rounds
    assert number == 0 and sorted(indices) == list(range(count))
    assert pipeline.unet_evaluations == count * 3 * 3


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_edit_resumes_to_the_same_scene_and_pictures(method: str, small: Make) -> None:
    """Killed twice on the way: in the middle of a round, and right after it was continued."""
    whole = run(small(method)).pipeline
    folder = run_until_killed(small(method, timestamp="killed"), step=10)
    assert find_run(folder).checkpoint.name == "step-000000006.ckpt"
    again = run_until_killed(small(method, load_dir=folder, prompt=None, timestamp="killed"), step=8)
    assert again == folder

    resumed = run(small(method, load_dir=folder, prompt=None, timestamp="resumed"))
    assert resumed._start_step == 7
    pipeline = resumed.pipeline
    assert pipeline._edit.targets.views == whole._edit.targets.views
    assert torch.equal(pipeline._edit.targets.pictures, whole._edit.targets.pictures)
    torch.testing.assert_close(pipeline.eval_pictures(), whole.eval_pictures(), atol=1e-4, rtol=0)
    assert pipeline.unet_evaluations == whole.unet_evaluations


def test_gone_on_with_after_its_end_it_is_a_whole_run_again(small: Make) -> None:
    ended = run(small("csd-edit", max_num_iterations=4))
    again = run(small("csd-edit", load_dir=ended.base_dir, prompt=None, timestamp="on", max_num_iterations=4))
    states = [torch.load(find_run(of.base_dir).checkpoint)["pipeline"] for of in (ended, again)]
    assert states[0].keys() == states[1].keys()
    weights = [name for name, value in states[0].items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in weights)


@pytest.mark.parametrize(("method", "each"), PER_ROUND.items())
def test_unet_evaluations_are_counted_and_saved(method: str, each: int, small: Make) -> None:
    trainer = run(small(method, max_num_iterations=5))
    pipeline = trainer.pipeline
    assert pipeline.unet_evaluations == 2 * each
    metrics = [pipeline.get_train_loss_dict(step)[2] for step in (7, 8)]
    assert [int(metric["unet_evaluations"]) for metric in metrics] == [0, each]
    assert [int(metric["unet_evaluations_total"]) for metric in metrics] == [2 * each, 3 * each]
    saved = torch.load(find_run(trainer.base_dir).checkpoint)["pipeline"]
    assert saved["_extra_state"]["unet_evaluations"] == 2 * each


def test_the_published_gradient_counts_the_same_way(edit_config: Make) -> None:
    pipeline = run(edit_config(max_num_iterations=2, pipeline__route="gradient")).pipeline
    assert pipeline.unet_evaluations == 2 * 4 * 5
    metrics = pipeline.get_train_loss_dict(2)[2]
    assert (int(metrics["unet_evaluations"]), int(metrics["unet_evaluations_total"])) == (20, 60)


def test_the_scene_moves_towards_its_edited_pictures(small: Make) -> None:
    settings = {"max_num_iterations": 60, "pipeline__fits_per_round": 5, "pipeline__sampling__steps": 10}
    pipeline = run(small("in2n-baseline", **settings)).pipeline
    assert len(pipeline._edit.targets.edited) == len(pipeline._edit.targets.photos) >= 10
    before, after = pipeline._edit.before, pipeline.eval_pictures()
    assert after.mean() < before.mean() - 0.05
    assert after[:, 2].mean() > after[:, 0].mean()  # night is blue


def test_no_noise_leaves_the_renders_as_targets(small: Make) -> None:
    """Sampling at strength 0: what is fitted is what was drawn, but for the autoencoder."""
    strengths = {"pipeline__sampling__min_timestep": 0.0, "pipeline__sampling__max_timestep": 0.0}
    pipeline = run(small("in2n-baseline", max_num_iterations=1, **strengths)).pipeline
    edit = pipeline._edit
    assert pipeline.unet_evaluations == 0
    pipeline.reset_to_source()
    pipeline._begin_round(edit, 0)
    (index,) = edit.targets.edited
    drawn = draw(pipeline.model, edit.rays, [index])
    expected = as_bytes(edit.prior.decode(edit.prior.encode(drawn)))[0].float()
    torch.testing.assert_close(edit.targets.pictures[-1].float(), expected, atol=1, rtol=0)


def test_no_steps_of_descent_leave_the_renders_as_targets_exactly(small: Make) -> None:
    """The autoencoder's loss cancels: without a change the target is the picture that was drawn."""
    pipeline = run(small("csd-edit", max_num_iterations=1, pipeline__descent__steps=0)).pipeline
    edit = pipeline._edit
    pipeline.reset_to_source()
    pipeline._begin_round(edit, 0)
    drawn = as_bytes(draw(pipeline.model, edit.rays, edit.targets.views))
    assert torch.equal(edit.targets.pictures, drawn)
    lossy = edit.prior.decode(edit.prior.encode(drawn.permute(0, 3, 1, 2) / 255))
    assert not torch.allclose(as_bytes(lossy).float(), drawn.float(), atol=2)


def test_a_descent_is_that_of_the_latents_of_the_views(small: Make) -> None:
    """The loop's edit against a plain loop over `Objective.gradient`, with annealed timesteps."""
    from csd_nerf.distillation.objective import Objective

    settings = {"pipeline__objective__timesteps": "annealed"}
    pipeline = run(small("csd-edit", max_num_iterations=9, **settings)).pipeline
    edit, config = pipeline._edit, pipeline.config
    indices = edit.sampler(1)
    torch.manual_seed(3)
    pipeline._begin_round(edit, 1)

    objective = Objective(config.objective, edit.prior)
    source, condition = pipeline._source_latents(indices)
    drawn = draw(pipeline.model, edit.rays, indices)
    start = latents = edit.prior.encode(drawn)
    torch.manual_seed(3)
    for step in (2, 3):  # of 3 rounds of 2
        gradient = objective.gradient(
            latents, source, condition, prompt="make it night", step=step, max_steps=6
        ).gradient
        rate = config.descent.learning_rate * config.descent.growth ** (step / 5)
        latents = latents - rate * gradient
    assert config.descent.growth > 1
    expected = drawn + edit.prior.decode(latents) - edit.prior.decode(start)
    torch.testing.assert_close(edit.targets.pictures[-3:].float(), as_bytes(expected).float(), atol=1, rtol=0)


def test_a_scene_agrees_with_its_own_views(small: Make) -> None:
    """Fitted as it is drawn, it is not moved by targets that ask for nothing, but for their rounding."""
    pipeline = run(small("csd-edit", max_num_iterations=3)).pipeline
    edit = pipeline._edit
    edit.targets.restore()
    edit.targets.put([0, 1], draw(pipeline.model, edit.rays, [0, 1]))
    pipeline.train()
    _, difference = edit.fit.losses(pipeline.model, edit.targets)
    assert difference < 0.5 / 255


def test_a_residual_that_is_not_finite_is_asked_for_again(small: Make, monkeypatch: Any) -> None:
    """In the next step, and not a whole round later."""
    from csd_nerf.distillation.objective import NonFiniteResidual, Objective

    gradient_of, calls = Objective.gradient, []

    def broken_twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) <= 2:
            raise NonFiniteResidual("not finite")
        return gradient_of(self, *args, **kwargs)

    monkeypatch.setattr(Objective, "gradient", broken_twice)
    trainer = run(small("csd-edit", max_num_iterations=4))
    assert len(trainer.pipeline._edit.targets.views) == 3
    state = next(iter(trainer.optimizers.optimizers["fields"].state.values()))
    assert int(state["step"]) == 2


@pytest.mark.parametrize("method", ["csd-edit", "in2n-baseline"])
def test_a_prior_that_only_answers_nan_ends_the_edit(
    method: str, small: Make, monkeypatch: Any, capsys: Any
) -> None:
    from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix

    monkeypatch.setattr(
        InstructPix2Pix, "predict_noise", lambda self, noisy, *_: torch.full_like(noisy, float("nan"))
    )
    with pytest.raises(SystemExit) as stop:
        run(small(method))
    assert stop.value.code == 1 and "5 steps in a row" in capsys.readouterr().out


def test_an_edit_that_asks_for_nothing_says_so_at_once(small: Make, capsys: Any) -> None:
    run(small("csd-edit", pipeline__descent__learning_rate=1e-3))
    assert capsys.readouterr().out.count("asks for next to no change") == 1
    run(small("csd-edit", prompt="make it night", timestamp="night"))
    assert "asks for next to no change" not in capsys.readouterr().out


def test_a_scene_that_does_not_follow_says_so(small: Make, capsys: Any) -> None:
    config = small("csd-edit")
    for optimizer in config.optimizers.values():
        optimizer["optimizer"].lr = optimizer["scheduler"].lr_final = 1e-9
    run(config)
    assert capsys.readouterr().out.count("does not follow its targets") == 1


def test_an_alarm_is_given_after_two_rounds_once_and_not_when_all_is_well() -> None:
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    alarm = NoOpAlarm()
    assert [alarm.asked(grey, grey) is None for _ in range(4)] == [True, False, True, True]
    assert [alarm.followed(grey, grey, black) is None for _ in range(4)] == [True, False, True, True]
    alarm = NoOpAlarm()
    assert alarm.asked(grey, black) is alarm.asked(grey, grey) is alarm.asked(grey, grey) is None
    assert alarm.followed(grey, black, black) is alarm.followed(grey, grey, black) is None


def test_views_are_drawn_where_they_are_fitted(small: Make) -> None:
    """At the corrected pose: a scene fitted to its own renders must not move."""
    pipeline = run(small("csd-edit", max_num_iterations=1, pipeline__descent__steps=0)).pipeline
    edit, model = pipeline._edit, pipeline.model
    with torch.no_grad():
        index = edit.targets.views[0]
        expected = render_still(model, edit.cameras.generate_rays(index, keep_shape=True)).image
    torch.testing.assert_close(draw(model, edit.rays, [index])[0], expected, atol=1e-4, rtol=0)
    model.camera_optimizer = CameraOptimizerConfig(mode="SO3xR3").setup(
        num_cameras=len(edit.cameras), device="cpu"
    )
    torch.nn.init.normal_(model.camera_optimizer.pose_adjustment, std=0.05)
    corrected = draw(model, edit.rays, [index])
    assert (corrected[0] - expected).abs().mean() > 0.01
    differences = []
    for picture in (corrected, expected[None]):
        edit.targets.restore()
        edit.targets.put([index], picture)
        differences.append(edit.fit.losses(model, edit.targets)[1])
    fitted, elsewhere = differences
    assert fitted < 0.6 * elsewhere  # for the jitter of the samples alone


def test_a_checkpoint_has_the_scene_and_the_pictures_that_were_edited(small: Make, scene_run: Path) -> None:
    trainer = run(small("csd-edit-dataset", max_num_iterations=2))
    checkpoint = find_run(trainer.base_dir).checkpoint
    scene, edit = (torch.load(file)["pipeline"] for file in (find_run(scene_run).checkpoint, checkpoint))
    assert edit.keys() - {"_extra_state"} == scene.keys()
    pictures = edit["_extra_state"]["targets"]["pictures"]
    assert pictures.dtype == torch.uint8 and len(pictures) == len(trainer.pipeline._edit.targets.edited)


def test_reset_puts_photos_and_scene_back(small: Make) -> None:
    trainer = run(small("in2n-baseline", max_num_iterations=6))
    pipeline = trainer.pipeline
    pipeline.reset_to_source()
    torch.testing.assert_close(pipeline.eval_pictures(), pipeline._edit.before)
    assert not pipeline._edit.targets.edited
    assert torch.equal(pipeline._edit.targets.pictures, pipeline._edit.targets.photos)


def test_samples_are_the_pixels_of_the_pictures(small: Make) -> None:
    """Patches lie row by row in one picture; rays go through the pixels whose colours come with them."""
    pipeline = run(small("in2n-baseline", max_num_iterations=1)).pipeline
    count, size = len(pipeline._edit.targets.photos), 32
    cameras = fit_cameras(pipeline.datamanager.train_dataset.cameras, size, size)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    number = torch.arange(count)[:, None, None].expand(-1, size, size)
    coded = torch.stack([number, row.expand_as(number), column.expand_as(number)], dim=-1).byte()
    pictures = Targets(PixelRays(cameras), 0, photos=coded)
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


def test_lpips_trains_where_its_weights_are(small: Make, alexnet: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(alexnet))
    _give(monkeypatch, "--pipeline.datamanager.patch-size", "--pipeline.lpips-weight")
    rays = {"pipeline__datamanager__train_num_rays_per_batch": 1024}
    pipeline = run(small("in2n-baseline", max_num_iterations=1, **rays)).pipeline
    assert (pipeline.config.lpips_weight, pipeline.config.datamanager.patch_size) == (1.0, 32)
    losses = pipeline.get_train_loss_dict(1)[1]
    assert losses["lpips_loss"] > 0 and losses["lpips_loss"].requires_grad
    colours = torch.rand(1024, 3)
    assert pipeline._edit.fit.lpips(colours, colours, 32) == 0
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
        ("csd-edit-dataset", {"pipeline__particles": 99}, "--pipeline.particles 4"),
        ("csd-edit-dataset", {"pipeline__fits_per_round": -1}, "--pipeline.fits-per-round"),
        ("csd-edit", {"pipeline__kept_views": -1}, "--pipeline.kept-views"),
        ("csd-edit", {"pipeline__kept_views": 2}, "at least 3, the views of a round"),
        ("csd-edit-dataset", {"pipeline__descent__learning_rate": -1.0}, "--pipeline.descent.learning-rate"),
        ("csd-edit-dataset", {"pipeline__objective__residual": "dds"}, "--pipeline.source-prompt"),
        ("in2n-baseline", {"pipeline__sampling__steps": 0}, "--pipeline.sampling.steps"),
        ("in2n-baseline", {"pipeline__sampling__min_timestep": 0.99}, "range of timesteps"),
        ("in2n-baseline", {"pipeline__lpips_weight": 0.5}, "do without LPIPS"),
        ("in2n-baseline", {"pipeline__lpips_weight": -1.0}, "--pipeline.lpips-weight"),
        ("in2n-baseline", {"pipeline__datamanager__patch_size": 64}, "at most the render size"),
        ("in2n-baseline", {"pipeline__datamanager__train_num_rays_per_batch": 0}, "train-num-rays"),
    ],
)
def test_bad_input(method: str, changes: dict[str, Any], said: str, small: Make, capsys: Any) -> None:
    assert said in refusal(small(method, **changes), capsys)


def test_the_published_gradient_keeps_no_views_that_could_be_too_few(small: Make) -> None:
    small("csd-edit", pipeline__kept_views=2, pipeline__route="gradient").pipeline.check()


def test_a_text_to_image_model_is_refused(small: Make, text_to_image_folder: Path, capsys: Any) -> None:
    for method in DATASET_METHODS:
        assert "text-to-image" in refusal(small(method, pipeline__prior=str(text_to_image_folder)), capsys)


def test_another_render_size_cannot_go_on_with_the_pictures(small: Make, capsys: Any) -> None:
    folder = run(small("in2n-baseline", max_num_iterations=2)).base_dir
    changes = {"load_dir": folder, "prompt": None, "pipeline__render_size": 24}
    assert "--pipeline.render-size" in refusal(small("in2n-baseline", **changes), capsys)


def test_a_photo_goes_through_the_autoencoder_once(small: Make, monkeypatch: Any) -> None:
    pipeline = run(small("csd-edit", max_num_iterations=1)).pipeline
    prior, seen = pipeline._edit.prior, []
    encode = prior.vae.encode
    monkeypatch.setattr(prior.vae, "encode", lambda pictures: seen.append(len(pictures)) or encode(pictures))
    pipeline._edit.source_latents.clear()
    pipeline._source_latents([0, 1])
    pipeline._source_latents([1, 0])
    assert seen == [1, 1]
