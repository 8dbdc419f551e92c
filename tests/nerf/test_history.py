"""Edits that follow one another, and their history."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, refusal, run, run_until_killed
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.utils.eval_utils import eval_setup
from viser import GuiMarkdownHandle

from csd_nerf.cli import main
from csd_nerf.nerf.chain import chain_of
from csd_nerf.nerf.edited_run import open_edited_run
from csd_nerf.nerf.evaluate_run import EvaluationSettings, evaluate

Make = Any
SHORT: dict[str, Any] = {
    "max_num_iterations": 16,
    "pipeline__fits_per_round": 4,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
}
SKETCH = "turn it into a pencil sketch"


@pytest.fixture(scope="module")
def night(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trainer of an edit that has ended."""
    folder = tmp_path_factory.mktemp("night")
    return run(make_edit_config("csd-edit-tiny", folder, scene_run, **SHORT, timestamp="night"))


def test_another_prompt_edits_the_edited_scene(night: Any, edit_config: Make, scene_run: Path) -> None:
    second = run(edit_config(**SHORT, load_dir=night.base_dir, prompt=SKETCH, timestamp="sketch"))
    assert second._start_step == 0
    assert torch.equal(second.pipeline._edit.before, night.pipeline.eval_pictures())
    # What the prior is shown is the night, not the photos of the day.
    ((index,), *_) = second.pipeline._edit.source_latents
    edit = second.pipeline._edit
    shown = edit.prior.decode(second.pipeline._source_latents([index])[0])
    photo = second.pipeline.datamanager.train_photos([index], edit.height, edit.width)
    assert shown.mean() < photo.mean() - 0.1

    links = chain_of(second.base_dir)
    assert [link.prompt for link in links] == ["", "make it night", SKETCH]
    assert [link.folder for link in links] == [scene_run, night.base_dir, second.base_dir]
    assert links[1].cost and links[1].cost.steps == 16

    figures = evaluate(open_edited_run(second.base_dir), EvaluationSettings(views=1), say=lambda _: None)
    assert {figure.name for figure in figures.figures.measured} >= {"change"}


def test_it_is_resumed_to_the_same_scene(night: Any, edit_config: Make) -> None:
    settings = {**SHORT, "steps_per_save": 6, "load_dir": night.base_dir, "prompt": SKETCH}
    whole = run(edit_config(**settings, timestamp="whole"))
    killed = run_until_killed(edit_config(**settings, timestamp="killed"), 9)
    resumed = run(edit_config(**{**settings, "load_dir": killed}, timestamp="resumed"))
    assert resumed._start_step == 7 and resumed.pipeline.config.source_was_edited
    weights = [trainer.pipeline.model.state_dict() for trainer in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_history_shows_the_chain(night: Any, capsys: Any, tmp_path: Path) -> None:
    main(["history", str(night.base_dir), "-o", str(tmp_path / "history.html")])
    assert "make it night" in capsys.readouterr().out
    page = (tmp_path / "history.html").read_text()
    assert page.count('class="compare"') == 1 and "<q>make it night</q>" in page
    assert "csd-nerf evaluate" in page and "http" not in page.replace("http-equiv", "")


def test_what_cannot_be_edited_further_is_said(
    night: Any, edit_config: Make, scene_run: Path, tmp_path: Path, capsys: Any
) -> None:
    killed = run_until_killed(edit_config(**SHORT, steps_per_save=3, timestamp="killed"), 8)
    assert "another prompt" in refusal(edit_config(load_dir=killed, prompt=SKETCH), capsys)
    frozen = run(edit_config(**SHORT, pipeline__freeze_geometry=True, timestamp="frozen")).base_dir
    printed = refusal(edit_config(load_dir=frozen, prompt=SKETCH), capsys)
    assert "cannot be edited further" in printed and "--pipeline.freeze-geometry" in printed
    main(["blend", str(night.base_dir), "--strength", "0.5", "-o", str(tmp_path / "half")])
    printed = refusal(edit_config(load_dir=tmp_path / "half", prompt=SKETCH), capsys)
    assert "cannot be edited further" in printed and "--pipeline.strength" in printed


def said_in_a_viewer(folder: Path) -> list[str]:
    """All that `ns-viewer` of a run says."""
    from nerfstudio.viewer.viewer import Viewer

    config, pipeline, _, _ = eval_setup(folder / "config.yml", test_mode="test")
    settings = ViewerConfig(websocket_port_default=17007, websocket_host="127.0.0.1")
    viewer = Viewer(settings, folder / "viewer_log", config.data, pipeline)
    try:
        shown = viewer.viser_server.gui._container_handle_from_id.values()
        elements = [element for each in shown for element in getattr(each, "_children", {}).values()]
        return [element.content for element in elements if isinstance(element, GuiMarkdownHandle)]
    finally:
        viewer.viser_server.stop()


def test_a_parent_that_is_gone_is_named(
    edit_config: Make, scene_run: Path, tmp_path: Path, capsys: Any
) -> None:
    scene = tmp_path / "scene"
    shutil.copytree(scene_run, scene)
    folder = run(edit_config(**{**SHORT, "max_num_iterations": 1}, load_dir=scene)).base_dir
    shutil.rmtree(scene)
    said = said_in_a_viewer(folder)
    assert "No scene before: the scene that this edit started from is gone." in said
    assert {"0. gone", "1. this edit"} <= set(said)
    main(["history", str(folder)])
    printed = capsys.readouterr().out
    assert f"Gone: {scene}." in printed and (folder / "history.html").exists()
    with pytest.raises(SystemExit) as stop:
        main(["history", str(scene)])
    assert stop.value.code == 2 and "there is no run at" in capsys.readouterr().err
