"""Trying edits on a few views, and choosing one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_edit_config, refusal, run
from PIL import Image

from csd_nerf.bundled import bundled_path
from csd_nerf.cli import main
from csd_nerf.distillation.residuals import Guidance
from csd_nerf.nerf.candidate import read_candidate, read_pictures, save_candidate
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.trying import ViewsToTry, agreement
from csd_nerf.scenes.operators import night, tint

Make = Any
SHORT: dict[str, Any] = {
    "max_num_iterations": 6,
    "pipeline__fits_per_round": 2,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
}


@pytest.fixture(scope="module")
def tried(scene_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two candidates for the scene, at the size of the tests' edits."""
    folder = tmp_path_factory.mktemp("tried")
    config = make_edit_config("csd-edit-tiny", folder, scene_run, **SHORT, timestamp="begun")
    views = ViewsToTry(run(config).pipeline, 3)
    pipeline = views._pipeline
    pipeline.model.load_state_dict(pipeline._edit.source_weights)
    for number, guidance in enumerate((4.0, 0.0), start=1):
        each = ViewsToTry(pipeline, 3).ask("make it night", Guidance(guidance, 1.0), seed=7)
        save_candidate(folder / str(number), each.candidate, each.pictures)
    return folder


def test_agreement_tells_one_edit_from_several() -> None:
    torch.manual_seed(0)
    views = torch.rand(3, 3, 16, 16)
    same = agreement(views, night(views))
    several = agreement(
        views, torch.stack([tint(v, hue) for v, hue in zip(views, ("red", "cyan", "violet"), strict=True)])
    )
    assert same is not None and several is not None
    assert same > 0.95 and several < 0.7
    assert agreement(views[:1], views[:1]) is None


def test_a_candidate_is_what_was_asked(tried: Path) -> None:
    night_candidate, none = (read_candidate(tried / str(number)) for number in (1, 2))
    assert night_candidate.seed == 7 and night_candidate.text_guidance == 4
    assert not night_candidate.does_nothing and night_candidate.change > none.change
    assert night_candidate.agreement is not None and night_candidate.agreement > 0.7
    assert "does nothing" in night_candidate.__class__(**{**vars(none), "change": 0.001}).in_words()


def test_chosen_it_becomes_the_edit(tried: Path, scene_run: Path, tmp_path: Path) -> None:
    def config(**changes: Any) -> Any:
        settings = {**SHORT, "prompt": None, "pipeline__candidate": tried / "1", **changes}
        return make_edit_config("csd-edit-tiny", tmp_path, scene_run, **settings)

    chosen = config(max_num_iterations=1)
    trainer = run(chosen)
    assert chosen.pipeline.prompt == "make it night" and chosen.machine.seed == 7
    assert trainer.pipeline.text_guidance.value == 4 and trainer.pipeline.image_guidance.value == 1
    candidate, targets = read_candidate(tried / "1"), trainer.pipeline._edit.targets
    pictures = read_pictures(tried / "1", candidate.views, 32, 32)
    kept = [view for view in candidate.views if view not in trainer.pipeline._edit.sampler(0)]
    assert kept and set(candidate.views) <= set(targets.views)
    for view in kept:
        expected = pictures[candidate.views.index(view)].permute(1, 2, 0)
        shown = targets.pictures[targets.views.index(view)].float() / 255
        torch.testing.assert_close(shown, expected, atol=1e-6, rtol=0)

    resumed = config(load_dir=trainer.base_dir, pipeline__candidate=None, max_num_iterations=2)
    assert run(resumed)._start_step == 1 and resumed.machine.seed == 7


def test_what_is_no_candidate_is_refused(tried: Path, edit_config: Make, tmp_path: Path, capsys: Any) -> None:
    def refused(candidate: Path, **changes: Any) -> str:
        settings = {**SHORT, "prompt": None, "pipeline__candidate": candidate, **changes}
        return refusal(edit_config(**settings), capsys)

    assert "there is no candidate in" in refused(tmp_path / "nothing")
    assert "tried with another prompt" in refused(tried / "1", prompt="make it winter")
    assert "another size" in refused(tried / "1", pipeline__render_size=40)
    shutil.copytree(tried / "1", tmp_path / "other")
    text = (tried / "1" / "candidate.json").read_text().replace("step-", "other-")
    (tmp_path / "other" / "candidate.json").write_text(text)
    assert "tried on another scene" in refused(tmp_path / "other")
    assert "--pipeline.candidate" in refused(tried / "1", pipeline__route="gradient")


def test_its_prior_becomes_the_edits(scene_run: Path, tmp_path: Path) -> None:
    prior, folder = str(bundled_path("tiny-instruct")), tmp_path / "tried"
    command = ("try", str(scene_run), "--prompt", "make it night", "--seeds", "1", "--views", "2")
    main([*command, "--prior", prior, "-o", str(folder)])
    assert read_candidate(folder / "1").prior == prior
    settings = {**SHORT, "prompt": None, "pipeline__candidate": folder / "1", "pipeline__render_size": 64}
    config = make_edit_config("csd-edit-tiny", tmp_path, scene_run, **settings)
    config.check()
    assert config.pipeline.prior == prior


def test_the_command(scene_run: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "tried"
    command = ["try", str(scene_run), "--prompt", "make it night", "--prompt", "polar bear", "--seeds", "1"]
    main([*command, "--views", "2", "-o", str(folder)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "may not know 'polar bear'" in printed and "make it winter" in printed
    assert {path.name for path in folder.iterdir()} == {"1", "2", "contact.png", "index.html"}
    side = METHODS["csd-edit-tiny"].pipeline.render_size
    assert Image.open(folder / "contact.png").size == (2 * side + 4, 3 * side + 8)
    assert read_candidate(folder / "2").prompt == "polar bear"
    page = (folder / "index.html").read_text()
    assert f"--pipeline.candidate {folder / '1'}" in page and page.count("<figure") == 3

    for arguments, problem in (
        (["try", str(scene_run)], "no prompt was given"),
        (["try", str(scene_run), "--prompt", " "], "no prompt was given"),
        ([*command, "--views", "0"], "--views is too small"),
        ([*command, "--guidance", "nan"], "--guidance cannot be used"),
        ([*command, "-o", str(folder)], "is already there"),
        ([*command, "--method", "csd-nerfacto"], "is no method that edits"),
        ([*command, "--prior", str(tmp_path / "no")], str(tmp_path / "no")),
        (["try", str(tmp_path / "no"), "--prompt", "make it night"], "there is no run at"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and problem in capsys.readouterr().err
