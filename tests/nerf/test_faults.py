"""Faults of the machine: one message, and nothing that was there is lost."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import processes  # noqa: F401 - processes that are begun have imported all this already
import pytest
import torch
from nerf_runs import make_config, make_edit_config, refusal, run, run_until_killed
from nerfstudio.utils.eval_utils import eval_setup

from csd_nerf.checkpoints import whole_checkpoints
from csd_nerf.files import LOCK
from csd_nerf.nerf.edited_run import open_edited_run
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.scene_trainer import SceneTrainer, _opened_by_nerfstudio, free_timestamp

Make = Any

FEW_RAYS = {"pipeline__datamanager__train_num_rays_per_batch": 64}


@contextmanager
def a_full_disk() -> Iterator[None]:
    """Files of this process end after 64 kB, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, usual)


@pytest.mark.parametrize("newest_only", [True, False])
def test_a_disk_that_fills_up_takes_no_checkpoint_that_was_there(
    newest_only: bool, dataset: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SceneTrainer.save_checkpoint

    def filling_up(trainer: SceneTrainer, step: int) -> None:
        if step < 5:
            save(trainer, step)
        else:
            with a_full_disk():
                save(trainer, step)

    monkeypatch.setattr(SceneTrainer, "save_checkpoint", filling_up)
    config = make_config(
        "csd-nerfacto-tiny",
        tmp_path,
        dataset,
        max_num_iterations=6,
        steps_per_save=2,
        save_only_latest_checkpoint=newest_only,
        timestamp="scene",
        **FEW_RAYS,
    )
    printed = refusal(config, capsys)
    assert "step-000000005.ckpt cannot be written" in printed and "free some space" in printed
    folder = config.get_checkpoint_dir()
    assert list(whole_checkpoints(folder)) == ([4] if newest_only else [2, 4])
    assert sorted(path.suffix for path in folder.parent.iterdir() if "unfinished" in path.name) == []
    assert find_run(folder.parent).checkpoint.name == "step-000000004.ckpt"


def run_alone(config: Any) -> None:
    """Train in a process of its own."""
    torch.set_num_threads(1)
    run(config)


HOLDS = """
import sys, time
from pathlib import Path
from csd_nerf.files import hold
hold(Path(sys.argv[1]), of=Path(sys.argv[1]).parent, hint="")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_on_a_run_is_refused(edit_config: Make, capsys: Any) -> None:
    config = edit_config()
    lock = config.get_base_dir() / LOCK
    other = subprocess.Popen([sys.executable, "-c", HOLDS, lock], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline()
        assert "another process is working on" in refusal(config, capsys)
        assert [path.name for path in lock.parent.iterdir()] == [LOCK]
    finally:
        other.kill()
        other.wait()


def test_a_place_where_nothing_can_be_made(edit_config: Make, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(edit_config(output_dir=tmp_path / "file"), capsys)


def test_a_clock_that_was_set_back_overwrites_no_run(edit_config: Make) -> None:
    config = edit_config(timestamp="2026-01-01_120000")
    assert free_timestamp(config) == "2026-01-01_120000"
    for number in (2, 3):
        config.get_base_dir().mkdir(parents=True)
        config.timestamp = free_timestamp(config)
        assert config.timestamp == f"2026-01-01_120000+{number}"


def test_a_run_that_was_moved_is_opened_from_anywhere(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, scene and edit below one folder, which is moved; or the runs elsewhere, and the edit is moved."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for output in (Path("outputs"), tmp_path / "outputs"):
        project = tmp_path / "project"
        project.mkdir()
        shutil.copytree(dataset, project / "data")
        monkeypatch.chdir(project)
        few: dict[str, Any] = {"max_num_iterations": 1, "timestamp": "s", **FEW_RAYS}
        scene = run(make_config("csd-nerfacto-tiny", output, Path("data"), **few)).base_dir
        edit = run(
            make_edit_config("csd-edit-tiny", output, scene, max_num_iterations=1, pipeline__particles=2)
        ).base_dir
        monkeypatch.chdir(elsewhere)
        if not output.is_absolute():
            project = project.rename(tmp_path / "moved")
            edit = project / edit
        pipeline = open_edited_run(edit).pipeline
        assert pipeline.config.source_checkpoint.exists()
        assert pipeline.datamanager.train_dataset.image_filenames[0].is_relative_to(project)
        assert find_run(edit).config.data.is_absolute()
        if output.is_absolute():
            edit = edit.rename(tmp_path / "another name")
        with monkeypatch.context() as patch:  # as `ns-eval`, `ns-render` and `ns-export` find it
            patch.setattr("sys.argv", ["ns-eval", f"--load-config={edit / 'config.yml'}"])
            config, _, checkpoint, step = eval_setup(edit / "config.yml")
        assert step == 0 and checkpoint.is_relative_to(edit) and config.get_base_dir() == edit


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ([], None),
        ([""], None),
        (["ns-eval"], None),
        (["ns-eval", "--load-config", "a/config.yml"], "a/config.yml"),
        (["ns-render", "dataset", "--load_config=a b/config.yml", "--image-format", "png"], "a b/config.yml"),
        (["/bin/ns-train", "csd-nerfacto", "--load-config", "a/config.yml"], None),
    ],
)
def test_which_run_a_program_opens(
    words: list[str], file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", words)
    assert _opened_by_nerfstudio() == (None if file is None else Path(file))


def test_a_prior_that_is_not_finite_for_a_while_costs_these_steps_alone(
    edit_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from csd_nerf.priors.latent_diffusion import LatentDiffusion

    calls = []
    predict = LatentDiffusion.predict_noise

    def at_times_not_finite(prior: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return predict(prior, *arguments, **options) * (float("nan") if len(calls) == 1 else 1.0)

    monkeypatch.setattr(LatentDiffusion, "predict_noise", at_times_not_finite)
    trainer = run(edit_config(pipeline__particles=2, pipeline__descent__steps=1, max_num_iterations=3))
    assert len(calls) > 1 and trainer.steps_done == 3
    assert "skipped" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in trainer.pipeline.model.parameters())


def test_an_edit_that_was_killed_goes_on_in_its_own_folder(edit_config: Make) -> None:
    """Of the process that was killed no lock is left; the same process may take the folder again."""
    folder = run_until_killed(edit_config(max_num_iterations=4, steps_per_save=1, pipeline__particles=2), 3)
    trainer = run(edit_config(load_dir=folder, prompt=None, max_num_iterations=4))
    assert trainer.base_dir == folder and trainer.steps_done == 4


def test_killed_at_any_moment_it_ends_the_same(edit_config: Make) -> None:
    """The process is killed twice, at moments after its first checkpoint; `benchmarks/kills.py` does more."""
    steps = 9
    few: dict[str, Any] = {"max_num_iterations": steps, "steps_per_save": 1, "pipeline__particles": 2}
    few |= {"pipeline__fits_per_round": 3, "pipeline__descent__steps": 1, "experiment_name": "e"}
    whole = run(edit_config(**few, timestamp="whole")).base_dir
    words: dict[str, Any] = {}
    for _ in range(2):
        config = edit_config(**few, **words, timestamp="killed")
        checkpoints = config.get_base_dir() / "nerfstudio_models"
        process = multiprocessing.get_context("forkserver").Process(target=run_alone, args=(config,))
        process.start()
        while process.is_alive() and not whole_checkpoints(checkpoints):
            time.sleep(0.01)
        process.join(random.SystemRandom().uniform(0, 1.5))
        process.kill()
        process.join()
        words = {"prompt": None, "load_dir": config.get_base_dir()}
    ended = run(edit_config(**few, **words, timestamp="killed")).base_dir
    expected, weights = (read_checkpoint(find_run(folder).checkpoint) for folder in (whole, ended))
    assert ended == checkpoints.parent and weights["step"] == expected["step"] == steps - 1
    for name, value in expected["pipeline"].items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, weights["pipeline"][name]), name
