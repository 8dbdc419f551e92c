"""How much of an edit is shown: the source at 0, the edit at 1, a mixture between, and saved as a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, refusal, run
from nerfstudio.utils.eval_utils import eval_setup

from csd_nerf.cli import main
from csd_nerf.errors import InputError
from csd_nerf.nerf.edited_run import open_edited_run
from csd_nerf.nerf.evaluate_run import EvaluationSettings, evaluate
from csd_nerf.nerf.runs import find_run, read_checkpoint

Make = Any
SHORT: dict[str, Any] = {
    "max_num_iterations": 16,
    "pipeline__fits_per_round": 4,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "box": {
        "pipeline__region__source": "box",
        "pipeline__region__box_center": (0.0, 0.0, -0.1),
        "pipeline__region__box_size": (0.8, 0.8, 0.8),
    },
    "colours": {"pipeline__freeze_geometry": True},
}


@pytest.fixture(scope="module", params=KINDS)
def edited(request: pytest.FixtureRequest, scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an edit."""
    folder = tmp_path_factory.mktemp(request.param)
    return run(make_edit_config("csd-edit-tiny", folder, scene_run, **SHORT, **KINDS[request.param])).base_dir


def test_it_goes_from_source_to_edit(edited: Path) -> None:
    pipeline = open_edited_run(edited).pipeline
    edit = pipeline.eval_pictures()
    source_run = Path(pipeline.config.source_checkpoint).parent.parent
    _, scene, _, _ = eval_setup(source_run / "config.yml", test_mode="test")

    pipeline.show_at(0.0)
    source = pipeline.eval_pictures()
    cameras, _ = pipeline.datamanager.eval_cameras(32, 32, 2)
    for index in range(len(cameras)):
        with torch.no_grad():
            expected = scene.model.get_outputs_for_camera(cameras[index : index + 1])["rgb"]
        assert torch.equal(source[index].permute(1, 2, 0), expected)

    changes, left = [], []
    for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        pipeline.show_at(strength)
        assert pipeline.strength == strength
        shown = pipeline.eval_pictures()
        changes.append(float((shown - source).abs().mean()))
        left.append(float((shown - edit).abs().mean()))
    assert left[-1] == 0 and changes[0] == 0
    assert all(later > earlier for earlier, later in zip(changes, changes[1:], strict=False)), changes
    assert all(later < earlier for earlier, later in zip(left, left[1:], strict=False)), left


def test_a_blend_is_a_run_that_everything_opens(edited: Path, tmp_path: Path, capsys: Any) -> None:
    blended = tmp_path / "blends" / "half"
    main(["blend", str(edited), "--strength", "0.5", "-o", str(blended)])
    printed = capsys.readouterr().out
    assert f"ns-viewer --load-config {blended / 'config.yml'}" in printed.replace("\n", " ")
    assert {path.name for path in (blended / "pictures").iterdir()} == {"before.png", "after.png"}

    expected = open_edited_run(edited).pipeline
    expected.show_at(0.5)
    _, pipeline, checkpoint, step = eval_setup(blended / "config.yml", test_mode="test")
    assert checkpoint.parent.parent == blended and step == 15 and pipeline.strength == 0.5
    assert torch.equal(pipeline.eval_pictures(), expected.eval_pictures())
    pipeline.show_at(1.0)  # nothing of the edit is lost
    expected.show_at(1.0)
    assert torch.equal(pipeline.eval_pictures(), expected.eval_pictures())

    opened = open_edited_run(blended)
    assert opened.folder == blended
    figures = evaluate(opened, EvaluationSettings(views=1), say=lambda _: None).figures
    assert {figure.name for figure in figures.measured} >= {"change"}


def test_an_edit_of_less_strength_trains_the_same(scene_run: Path, edit_config: Make) -> None:
    whole, half = (
        run(edit_config(**SHORT, timestamp=name, pipeline__strength=strength))
        for name, strength in (("whole", 1.0), ("half", 0.5))
    )
    weights = [trainer.pipeline.model.field.state_dict() for trainer in (whole, half)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert half.pipeline.strength == 0.5
    shown = half.pipeline.eval_pictures()
    half.pipeline.show_at(1)
    assert torch.equal(half.pipeline.eval_pictures(), whole.pipeline.eval_pictures())
    whole.pipeline.show_at(0.5)  # afterwards, as by a slider
    assert torch.equal(whole.pipeline.eval_pictures(), shown)
    whole.pipeline.get_train_loss_dict(0)  # and training goes on

    source = read_checkpoint(find_run(scene_run).checkpoint)["pipeline"]
    saved = read_checkpoint(find_run(half.base_dir).checkpoint)["pipeline"]
    for name, value in saved.items():
        if name.startswith("_model.source_"):
            assert torch.equal(value, source[name.replace("source_", "")]), name


def test_a_blend_can_be_continued(edit_config: Make, tmp_path: Path) -> None:
    folder = run(edit_config(**SHORT)).base_dir
    main(["blend", str(folder), "--strength", "0.3", "-o", str(tmp_path / "blend")])
    longer = {**SHORT, "max_num_iterations": 20, "prompt": None}
    resumed = [
        run(edit_config(**longer, load_dir=start, timestamp=f"resumed-{number}"))
        for number, start in enumerate([folder, tmp_path / "blend"])
    ]
    assert [trainer._start_step for trainer in resumed] == [16, 16]
    assert resumed[1].pipeline.strength == 0.3 and resumed[1].base_dir != tmp_path / "blend"
    weights = [trainer.pipeline.model.field.state_dict() for trainer in resumed]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_mixed_is_refused(
    scene_run: Path, edit_config: Make, tmp_path: Path, capsys: Any
) -> None:
    assert "--pipeline.strength" in refusal(edit_config(pipeline__strength=1.2), capsys)
    assert "--pipeline.strength" in refusal(edit_config(pipeline__strength=float("nan")), capsys)

    scene = tmp_path / "scene"
    shutil.copytree(scene_run, scene)
    folder = run(edit_config(**{**SHORT, "max_num_iterations": 1}, load_dir=scene)).base_dir
    pipeline = open_edited_run(folder).pipeline
    shutil.rmtree(scene)
    with pytest.raises(InputError, match="that this edit started from is gone"):
        pipeline.show_at(0.5)
    assert pipeline.strength == 1

    capsys.readouterr()
    refused = {
        "--strength cannot be used": ["blend", str(folder), "--strength", "-0.1", "-o", str(tmp_path / "a")],
        "is already there": ["blend", str(folder), "--strength", "0.5", "-o", str(tmp_path)],
        "is gone": ["blend", str(folder), "--strength", "0.5", "-o", str(tmp_path / "b")],
    }
    for problem, arguments in refused.items():
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and problem in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
