"""Somebody looks at the scene in the viewer while a run starts, goes on and ends; nothing of it changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerf_runs import run
from PIL import Image, ImageChops

from csd_nerf.cameras import fit_cameras
from csd_nerf.nerf.prompted_trainer import PromptedTrainer
from csd_nerf.nerf.runs import find_run

Make = Any


class Onlooker(threading.Thread):
    """Draws again and again, as nerfstudio's viewer does: under the trainer's lock, in evaluation mode."""

    def __init__(self, trainer: PromptedTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.has_drawn, self.is_to_stop = threading.Event(), threading.Event()

    def run(self) -> None:
        model = self.trainer.pipeline.model
        camera = fit_cameras(self.trainer.pipeline.datamanager.train_dataset.cameras[:1], 16, 16)
        while not self.is_to_stop.wait(0.001):
            with self.trainer.train_lock:
                was_training = model.training
                model.eval()
                with torch.no_grad():
                    model.get_outputs_for_camera(camera)
                if was_training:
                    model.train()
            self.has_drawn.set()


@pytest.fixture
def onlookers(monkeypatch: pytest.MonkeyPatch) -> list[Onlooker]:
    """One for every run of a test, there as soon as the viewer would be: when the pipeline is."""
    seen: list[Onlooker] = []
    setup_optimizers, train = PromptedTrainer.setup_optimizers, PromptedTrainer.train

    def arrive(trainer: PromptedTrainer) -> Any:
        seen.append(Onlooker(trainer))
        seen[-1].start()
        return setup_optimizers(trainer)

    def stay(trainer: PromptedTrainer) -> None:
        assert seen[-1].has_drawn.wait(60)
        try:
            train(trainer)
        finally:
            seen[-1].is_to_stop.set()
            seen[-1].join()

    monkeypatch.setattr(PromptedTrainer, "setup_optimizers", arrive)
    monkeypatch.setattr(PromptedTrainer, "train", stay)
    return seen


def edit(edit_config: Make, timestamp: str) -> Path:
    """The folder of an edit in a box that is drawn at its start, after its first step and at its end."""
    return run(
        edit_config(
            timestamp=timestamp,
            max_num_iterations=2,
            pipeline__region__source="box",
            pipeline__region__box_center=(0.0, 0.0, 0.0),
            pipeline__region__box_size=(50.0, 50.0, 50.0),
            pipeline__steps_per_picture=1,
        )
    ).base_dir


def test_an_edit_is_the_same_when_somebody_looks(
    edit_config: Make, onlookers: list[Onlooker], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = edit(edit_config, "watched")
    assert len(onlookers) == 1
    monkeypatch.undo()
    alone = edit(edit_config, "alone")

    names = {path.name for path in (alone / "pictures").iterdir()}
    assert names == {"region.png", "before.png", "after.png", "step-000001.png", "step-000002.png"}
    for name in names:
        pictures = [Image.open(folder / "pictures" / name) for folder in (watched, alone)]
        assert ImageChops.difference(*pictures).getbbox() is None, name
    assert (watched / "turntable.mp4").read_bytes() == (alone / "turntable.mp4").read_bytes()
    weights = [torch.load(find_run(folder).checkpoint)["pipeline"] for folder in (watched, alone)]
    for name, value in weights[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, weights[1][name]), name


def test_tabs_are_drawn_for_until_the_program_ends(
    edit_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(
        PromptedTrainer, "_end_drawing_for_viewers", lambda trainer: ended.append(trainer.steps_done)
    )
    trainer = run(edit_config(max_num_iterations=1, pipeline__turntable_frames=0))
    assert ended == [1]
    trainer._is_waiting, trainer.training_state = True, "paused"
    trainer.more_steps(1)
    trainer._start_step = 1
    trainer._train_to_the_end()
    assert ended == [1] and trainer.steps_done == 2


def test_what_draws_for_a_tab_has_ended_when_training_has() -> None:
    """A thread that still computes when the program ends would abort it."""

    class Drawing(threading.Thread):
        running = True

        def run(self) -> None:
            while self.running:
                time.sleep(0.01)

    threads = {number: Drawing(daemon=True) for number in range(2)}
    for thread in threads.values():
        thread.start()
    trainer: Any = object.__new__(PromptedTrainer)
    trainer.viewer_state = SimpleNamespace(render_statemachines=threads)
    trainer._end_drawing_for_viewers()
    assert not any(thread.is_alive() for thread in threads.values())
