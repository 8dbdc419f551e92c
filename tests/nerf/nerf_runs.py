"""Training in this process as `ns-train` does it, and configurations for it."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import nerfstudio.engine.trainer  # noqa: F401 - `nerfstudio.utils.writer` cannot be imported before it
import numpy as np
import pytest
import torch
from nerfstudio.utils import writer

from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.prompted_trainer import PromptedTrainer


def run(config: Any) -> Any:
    """Train as `ns-train` does, in this process; returns the trainer."""
    for buffer in (writer.EVENT_STORAGE, writer.EVENT_WRITERS):
        buffer.clear()
    writer.GLOBAL_BUFFER.clear()
    config.set_timestamp()
    config.save_config()
    random.seed(config.machine.seed)
    np.random.seed(config.machine.seed)
    torch.manual_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


def run_until_killed(config: Any, step: int) -> Path:
    """Train as `run` does, and die at the beginning of a step; returns the folder of what is left."""

    class Kill(Exception):
        pass

    train_iteration = PromptedTrainer.train_iteration

    def killed(trainer: PromptedTrainer, number: int) -> Any:
        if number == step:
            raise Kill
        return train_iteration(trainer, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptedTrainer, "train_iteration", killed)
        with pytest.raises(Kill):
            run(config)
    return config.get_base_dir()


def refusal(config: Any, capsys: Any) -> str:
    """What is printed when the configuration is refused."""
    with pytest.raises(SystemExit) as stop:
        run(config)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("Error:", "expected:", "got:", "do this:"))
    return printed


def make_config(method: str, output: Path, data: Path | None, **changes: Any) -> Any:
    """A method's configuration with some settings changed; dots are written as two underscores."""
    config = copy.deepcopy(METHODS[method])
    config.output_dir, config.data, config.vis = output, data, "tensorboard"
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    if data is not None:
        config.pipeline.datamanager.data = data
    for name, value in changes.items():
        target, *rest = reversed(name.split("__"))
        owner = config
        for part in reversed(rest):
            owner = getattr(owner, part)
        setattr(owner, target, value)
    return config


def make_edit_config(method: str, output: Path, scene_run: Path, **changes: Any) -> Any:
    """The configuration of a small edit of a scene, with some settings changed."""
    settings = {
        "load_dir": scene_run,
        "prompt": "make it night",
        "max_num_iterations": 4,
        "timestamp": "edit",
        "pipeline__render_size": 32,
        "pipeline__picture_size": 32,
        "pipeline__picture_views": 2,
        "pipeline__turntable_frames": 2,
    }
    if hasattr(METHODS[method].pipeline, "rays_per_chunk"):
        settings["pipeline__rays_per_chunk"] = 1024
    data = changes.pop("data", None)
    return make_config(method, output, data, **{**settings, **changes})
