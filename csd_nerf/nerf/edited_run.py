"""Opening an edited run: the scene after its edit; see `source_scene` for the one before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nerfstudio.engine.trainer  # noqa: F401 - its data managers cannot be imported before it
import torch

from csd_nerf.errors import InputError
from csd_nerf.nerf.edit_pipeline import EditPipeline
from csd_nerf.nerf.model import implementation_of
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.source_scene import source_checkpoint
from csd_nerf.nerf.trainer import EditTrainerConfig


@dataclass(frozen=True)
class EditedRun:
    """An edit on disk, loaded.

    Attributes:
        folder: of the run.
        method: its name, such as `csd-edit`.
        checkpoint: what was loaded.
        steps: of the edit that the checkpoint has seen.
        seed: of the edit.
        pipeline: holds the edited scene.
    """

    folder: Path
    method: str
    checkpoint: Path
    steps: int
    seed: int
    pipeline: EditPipeline


def open_edited_run(path: Path) -> EditedRun:
    """Load the newest whole checkpoint of an edit. No diffusion model is loaded.

    Args:
        path: its run folder, config.yml, folder of checkpoints, or one checkpoint.

    Raises:
        InputError: when that is no run, has no checkpoint, is a scene and not an edit, or lacks its dataset
            or the scene it was made from.
    """
    run = find_run(path)
    folder = run.checkpoint.parent.parent
    config: Any = run.config
    if not isinstance(config, EditTrainerConfig):
        raise InputError(
            f"{folder} is not an edit",
            expected="a run of csd-edit, csd-edit-tiny or another editing method",
            got="checkpoints without a config.yml" if config is None else f"a run of {config.method_name}",
            hint="edit the scene first: `ns-train csd-edit --load-dir SCENE_RUN --prompt ...`, and pass the "
            "folder it prints",
        )
    manager = config.pipeline.datamanager
    manager.data = config.data or manager.data
    source_checkpoint(config.pipeline)
    loaded = read_checkpoint(run.checkpoint)
    # The file of a run by an earlier version says tcnn whatever its fields ran in.
    config.pipeline.model.implementation = implementation_of(loaded["pipeline"])
    pipeline = config.pipeline.setup(
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), test_mode="test"
    )
    pipeline.load_pipeline(loaded["pipeline"], loaded["step"])
    pipeline.eval()
    return EditedRun(
        folder=folder,
        method=str(config.method_name),
        checkpoint=run.checkpoint,
        steps=loaded["step"] + 1,
        seed=config.machine.seed,
        pipeline=pipeline,
    )
