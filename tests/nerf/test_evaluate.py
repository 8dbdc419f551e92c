"""`csd-nerf evaluate`, the same figures in `ns-eval`, the cost of an edit, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, run

from csd_nerf.cli import main
from csd_nerf.errors import InputError
from csd_nerf.nerf.cost import NOTHING, CostMeter, read_cost, write_cost
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.edited_run import open_edited_run

Make = Any
ROUND = 2 * 5
"""U-Net evaluations of a step of the edits here, each a round: of two views, the branches of CSD-Edit."""
OFFLINE = ("clip_direction_consistency", "structure_distance", "lpips_to_source", "lpips_to_known_edit")


pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.fixture(scope="module")
def edit_run(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of four steps, and of as many rounds."""
    folder = tmp_path_factory.mktemp("edit")
    return run(
        make_edit_config(
            "csd-edit-tiny",
            folder,
            scene_run,
            pipeline__steps_per_picture=0,
            pipeline__fits_per_round=1,
            pipeline__particles=2,
            pipeline__descent__steps=1,
        )
    ).base_dir


def refusal(path: Path, capsys: Any, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(path), *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("Error:", "expected:", "got:", "do this:"))
    return printed


def test_an_edit_is_measured_without_weights_or_network(edit_run: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "figures" / "edit.json"
    main(["evaluate", str(edit_run), "--output", str(file), "--size", "24", "--views", "2"])
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    figures, missing = report["figures"], report["unavailable"]
    assert report["prompt"] == "make it night" and report["known_edit"] == "night" and report["steps"] == 4
    assert report["views"]["height"] == report["views"]["width"] == 24
    assert report["views"]["photos"] == ["0010.png"]  # all of the evaluation split
    assert torch.__version__.startswith(report["versions"]["torch"])
    assert {name for name in missing if not name.startswith("clip")} == set(OFFLINE[1:])
    assert "hf download openai/clip-vit-large-patch14" in missing[OFFLINE[0]]["hint"]
    for name in (
        "psnr_to_known_edit", "reprojection_error_short", "hue_deviation", "edge_correlation",
        "registration_shift", "registration_zoom",
    ):  # fmt: skip
        assert math.isfinite(figures[name]["after"])
        assert name in printed
    # Four steps go a long way on so small a scene.
    assert figures["psnr_to_known_edit"]["after"] > figures["psnr_to_known_edit"]["before"] + 2
    assert figures["chroma"]["before"] != figures["chroma"]["after"]
    assert figures["reprojection_error_long"]["before"] != figures["reprojection_error_long"]["after"]
    assert report["cost"]["unet_evaluations"] == 4 * ROUND
    assert "40 U-Net evaluations" in printed and "unavailable: " in printed


def test_ns_eval_has_the_same_figures_and_leaves_the_edit_as_it_was(edit_run: Path, capsys: Any) -> None:
    from csd_nerf.nerf.evaluate_run import EvaluationSettings, evaluate

    edited = open_edited_run(edit_run)
    weights = {name: value.clone() for name, value in edited.pipeline.model.state_dict().items()}
    metrics = edited.pipeline.get_average_eval_image_metrics(get_std=True)
    assert {"psnr", "psnr_std", "ssim"} <= metrics.keys()
    again = evaluate(edited, EvaluationSettings(), lambda line: None).figures
    for name in ("psnr_to_known_edit", "reprojection_error_short"):
        assert metrics[f"edit_{name}"] == pytest.approx(again[name].after)
        assert metrics[f"edit_{name}_before"] == pytest.approx(again[name].before)
    json.dumps({key: value for key, value in metrics.items() if key.startswith("edit_")}, allow_nan=False)
    for name, value in edited.pipeline.model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_ns_eval_goes_on_without_the_source_scene(
    edit_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pipeline: EditPipeline = open_edited_run(edit_run).pipeline
    pipeline.config.source_checkpoint = Path("gone.ckpt")
    metrics = pipeline.get_average_eval_image_metrics()
    assert "psnr" in metrics and not any(name.startswith("edit_") for name in metrics)


def test_the_cost_goes_on_over_a_resume(edit_config: Make, edit_run: Path, tmp_path: Path) -> None:
    first = read_cost(edit_run)
    assert first is not None and first.steps == 4 and first.seconds > 0
    trainer = run(edit_config(load_dir=edit_run, max_num_iterations=6, timestamp="resumed"))
    second = read_cost(trainer.base_dir)
    assert second is not None and second.steps == 6 and second.unet_evaluations == 6 * ROUND
    assert second.seconds > first.seconds
    assert second.peak_memory_mib is not None and first.peak_memory_mib is not None
    assert second.peak_memory_mib >= first.peak_memory_mib
    # The minutes of before count: there is time for one step more, and then for none.
    write_cost(trainer.base_dir, dataclasses.replace(second, seconds=119.999))
    limits = {"max_num_iterations": 50, "max_minutes": 2.0}
    timed = run(edit_config(load_dir=trainer.base_dir, timestamp="timed", **limits))
    third = read_cost(timed.base_dir)
    assert third is not None and third.steps == 7 and third.unet_evaluations == 7 * ROUND
    assert third.seconds >= 120
    assert [file.name for file in timed.checkpoint_dir.iterdir()] == ["step-000000006.ckpt"]
    assert (timed.base_dir / "turntable.mp4").exists()
    again = run(edit_config(load_dir=timed.base_dir, timestamp="again", **limits))
    # The time is up: nothing is done, and the run is whole all the same.
    assert [file.name for file in again.checkpoint_dir.iterdir()] == ["step-000000006.ckpt"]
    # An edit whose beginning nobody counted has no cost, rather than a wrong one.
    older = tmp_path / "older"
    shutil.copytree(edit_run, older, ignore=shutil.ignore_patterns("cost.json"))
    uncounted = run(edit_config(load_dir=older, max_num_iterations=5, timestamp="uncounted"))
    assert read_cost(uncounted.base_dir) is None
    with pytest.raises(InputError, match="nobody counted the minutes"):
        edit_config(load_dir=older, max_minutes=1.0).check()
    with pytest.raises(InputError, match="--max-minutes cannot be used"):
        edit_config(max_minutes=0.0).check()


def test_what_cannot_be_evaluated(edit_run: Path, scene_run: Path, tmp_path: Path, capsys: Any) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere", capsys)
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in" in refusal(tmp_path / "empty", capsys)
    printed = refusal(scene_run, capsys)
    assert "is not an edit" in printed and "csd-nerfacto-tiny" in printed

    without_checkpoint = tmp_path / "unfinished"
    shutil.copytree(edit_run, without_checkpoint, ignore=shutil.ignore_patterns("*.ckpt"))
    assert "no checkpoint in" in refusal(without_checkpoint, capsys)
    bare = tmp_path / "bare"
    shutil.copytree(edit_run, bare, ignore=shutil.ignore_patterns("config.yml"))
    assert "without a config.yml" in refusal(bare, capsys)

    moved = scene_run.with_name("moved")
    scene_run.rename(moved)
    try:
        assert "the scene that this edit started from is gone" in refusal(edit_run, capsys)
    finally:
        moved.rename(scene_run)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--views", "0"), "--views is too small"),
        (("--size", "8"), "--size is too small"),
        (("--source-text", "a table"), "without --text"),
        (("--output", "figures.txt"), "figures.txt cannot be written"),
        (("--output", "."), "a folder"),
    ],
)
def test_options_that_cannot_be_used(options: tuple[str, ...], part: str, capsys: Any) -> None:
    assert part in refusal(Path("run"), capsys, *options)


def test_memory_of_a_gpu_is_all_that_is_in_use_after_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tiny-cuda-nn holds is not among torch's tensors."""
    gigabyte = 2**30
    free = 20 * gigabyte
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 24 * gigabyte))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: gigabyte)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    meter = CostMeter(NOTHING, "cuda")
    free = 3 * gigabyte
    meter.look()
    free = 9 * gigabyte
    assert meter.total(steps=1, unet_evaluations=5).peak_memory_mib == 21 * 1024


def test_memory_is_looked_at_after_every_step(edit_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    look = CostMeter.look
    monkeypatch.setattr(CostMeter, "look", lambda meter: looked.append(look(meter)))
    run(edit_config(max_num_iterations=3))
    assert len(looked) == 3 + 1  # and when the cost is written
