"""Ctrl-C ends a run after its step, with all that is needed to go on; the end says what to do with it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nerf_runs import run

from csd_nerf.nerf.ctrl_c import ctrl_c_asks, ctrl_c_leaves
from csd_nerf.nerf.prompted_trainer import PromptedTrainer
from csd_nerf.nerf.runs import find_run, read_checkpoint

Make = Any
STEPS = 12
SHORT: dict[str, Any] = {
    "max_num_iterations": STEPS,
    "pipeline__fits_per_round": 3,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
}


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Ctrl-C is not ignored, as it is by what scripts start in the background."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_resumed_it_is_the_same(edit_config: Make, monkeypatch: Any, capsys: Any) -> None:
    whole = run(edit_config(**SHORT, timestamp="whole"))
    printed = capsys.readouterr().out
    folder = whole.base_dir
    assert f"Look: ns-viewer --load-config {folder}/config.yml" in printed
    assert f"Measure: csd-nerf evaluate {folder}" in printed
    assert f"Cost: {STEPS} steps in" in printed and "To go on" not in printed
    expected = read_checkpoint(find_run(folder).checkpoint)["pipeline"]

    train_iteration = PromptedTrainer.train_iteration
    for number in range(3):
        last = random.SystemRandom().randrange(STEPS - 1)

        def interrupted(trainer: Any, step: int, last: int = last) -> Any:
            if step == last:  # at a moment of its own in the step
                moment = random.SystemRandom().uniform(0, 0.02)
                threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT)).start()
            return train_iteration(trainer, step)

        with monkeypatch.context() as patch:
            patch.setattr(PromptedTrainer, "train_iteration", interrupted)
            config = edit_config(**SHORT, timestamp=f"interrupted-{number}")
            with pytest.raises(SystemExit) as stop:
                run(config)
        assert stop.value.code == 130
        folder = config.get_base_dir()
        assert (folder / "pictures" / "after.png").exists()
        printed = capsys.readouterr().out
        done = find_run(folder).checkpoint
        if done.name != f"step-{STEPS - 1:09d}.ckpt":
            command = f"To go on: ns-train csd-edit-tiny --load-dir {folder} --output-dir"
            assert command in printed
        again = {**SHORT, "prompt": None, "load_dir": folder, "timestamp": f"resumed-{number}"}
        resumed = run(edit_config(**again))
        weights = read_checkpoint(find_run(resumed.base_dir).checkpoint)["pipeline"]
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, weights[name]), (last, name)


def test_before_the_first_step_it_just_ends(edit_config: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        PromptedTrainer, "setup_optimizers", lambda _: os.kill(os.getpid(), signal.SIGINT) or 1 / 0
    )
    with pytest.raises(SystemExit) as stop:
        run(edit_config(**SHORT))
    assert stop.value.code == 130


def test_the_second_one_is_the_systems() -> None:
    asked: list[int] = []
    with ctrl_c_asks(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [1] and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with ctrl_c_leaves():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("goes on behind")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_begins_without_its_settings_on_the_screen(edit_config: Make, capsys: Any) -> None:
    config = edit_config(**SHORT)
    config.logging.local_writer.enable = True
    config.timestamp = "told"
    config.print_to_terminal()
    run(config)
    captured = capsys.readouterr()
    before = (captured.err + captured.out.split("Step (% Done)")[0]).splitlines()
    assert "Step (% Done)" in captured.out and len(before) < 30, before
