"""Edits that were made elsewhere and are to be compared: whether they can be."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csd_nerf.comparison.compare_settings import Instruction
from csd_nerf.errors import InputError
from csd_nerf.nerf.runs import find_run
from csd_nerf.nerf.source_scene import source_checkpoint
from csd_nerf.nerf.trainer import EditTrainerConfig
from csd_nerf.scenes.operators import CAPTIONS, OPERATORS, TINT_INSTRUCTION


def check_scene(load_dir: Path) -> Path:
    """The newest checkpoint of a trained scene.

    Raises:
        InputError: no run, no checkpoint, or an edit instead of a scene.
    """
    run = find_run(load_dir.expanduser())
    if isinstance(run.config, EditTrainerConfig):
        scene = shlex.quote(str(run.config.pipeline.source_checkpoint))
        raise InputError(
            f"{load_dir} is an edit already",
            expected="the run of a scene before any edit",
            got=f"a run of {run.config.method_name}",
            hint=f"pass --load-dir {scene}, and the edit with --runs",
        )
    return run.checkpoint.resolve()


def check_given(
    runs: Sequence[Path], source: Path | None
) -> tuple[dict[Path, tuple[Instruction, str]], Path | None]:
    """See that edits can be compared with each other and with those of a scene.

    Args:
        runs: their run folders.
        source: checkpoint of the scene that is compared on; None takes that of the first run.

    Returns:
        Instruction and method of each run folder, and the checkpoint of the scene.

    Raises:
        InputError: a run without a checkpoint, one that is no edit, or edits of different scenes or cameras.
    """
    found: dict[Path, tuple[Instruction, str]] = {}
    dataset: tuple[Path | None, Any] | None = None
    for path in runs:
        run = find_run(path.expanduser())
        config: Any = run.config
        if not isinstance(config, EditTrainerConfig):
            raise InputError(
                f"{path} is not an edit",
                expected="a run of csd-edit or another editing method",
                got="checkpoints without a config.yml"
                if config is None
                else f"a run of {config.method_name}",
                hint="pass a scene with --load-dir",
            )
        own = source_checkpoint(config.pipeline).resolve()
        source = source or own
        if own != source:
            raise InputError(
                "edits of different scenes cannot be compared",
                expected=f"edits that began from {source}",
                got=f"{path}, which began from {own}",
                hint="compare the edits of each scene by themselves, in another --output",
            )
        manager = config.pipeline.datamanager
        cameras = Path(config.data or manager.data or manager.dataparser.data).resolve(), manager.dataparser
        dataset = dataset or cameras
        if cameras != dataset:
            raise InputError(
                "edits with different cameras cannot be compared",
                expected=f"the dataset {dataset[0]}, split and scaled alike",
                got=f"{path}, with {cameras[0]} or another split",
                hint="edit with the same --data, or compare them by themselves, in another --output",
            )
        folder = run.checkpoint.parent.parent.resolve()
        found[folder] = (_instruction(config.pipeline.prompt), str(config.method_name))
    return found, source


def _instruction(prompt: str) -> Instruction:
    """What an edit was asked for; of descriptions with a known instruction, that."""
    for instruction, description in known_descriptions().items():
        if prompt in (instruction, description):
            return Instruction(instruction, description)
    return Instruction(prompt)


def known_descriptions() -> dict[str, str]:
    """Of each instruction with a known answer, what the edited picture shows."""
    known = {operator.instruction: CAPTIONS[name] for name, operator in OPERATORS.items() if name in CAPTIONS}
    return {**known, TINT_INSTRUCTION: CAPTIONS["tint"]}
