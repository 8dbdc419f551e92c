"""Finding a trained run, and taking over from it what the user did not say otherwise."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from nerfstudio.engine.trainer import TrainerConfig

from csd_nerf.errors import InputError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        checkpoint: its newest whole checkpoint.
        config: what its config.yml says; None when only the checkpoints are there.
    """

    checkpoint: Path
    config: TrainerConfig | None


def find_run(path: Path, step: int | None = None) -> Run:
    """The run at `path`: its folder, its config.yml, its folder of checkpoints, or one checkpoint.

    Args:
        path: as given to `--load-dir`.
        step: take the checkpoint of this step instead of the newest.

    Raises:
        InputError: when there is no such path or no whole checkpoint below it.
    """
    if not path.exists():
        raise InputError(
            f"there is no run at {path}",
            expected="the folder of a trained scene, its config.yml or its nerfstudio_models folder",
            got="a path that does not exist",
            hint="train the scene first (`ns-train csd-nerfacto --data SCENE`) and pass the folder it prints",
        )
    if path.suffix == ".ckpt":
        return Run(path, _read_config(path.parent.parent))
    folder = path.parent if path.is_file() else path
    checkpoints = folder if any(folder.glob("step-*.ckpt")) else folder / "nerfstudio_models"
    wanted = "step-*.ckpt" if step is None else f"step-{step:09d}.ckpt"
    # A checkpoint cut short by a kill or a full disk is no zip file: the one before it is used.
    whole = [file for file in sorted(checkpoints.glob(wanted), key=_step_of) if zipfile.is_zipfile(file)]
    if not whole:
        raise InputError(
            f"there is no checkpoint in {folder}",
            expected=f"{checkpoints.name}/{wanted}, as nerfstudio writes it",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "an empty folder",
            hint="pass the folder that holds config.yml and nerfstudio_models, "
            "usually outputs/SCENE/METHOD/TIME",
        )
    return Run(whole[-1], _read_config(checkpoints.parent))


def _step_of(checkpoint: Path) -> int:
    found = re.search(r"step-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else -1


def _read_config(folder: Path) -> TrainerConfig | None:
    file = folder / "config.yml"
    if not file.exists():
        return None
    try:
        config = yaml.load(file.read_text(encoding="utf8"), Loader=yaml.Loader)
    except (yaml.YAMLError, ImportError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be read",
            expected="the config.yml that nerfstudio wrote when the run was trained",
            got=str(error).splitlines()[0],
            hint="restore the file, or install the plugin that the run was trained with",
        ) from error
    if not isinstance(config, TrainerConfig):
        raise InputError(
            f"{file} is not a training configuration",
            expected="the config.yml that nerfstudio wrote when the run was trained",
            got=type(config).__name__,
            hint="pass the folder of a run trained with ns-train",
        )
    return config


def adopt(given: Config, default: Config, saved: object) -> Config:
    """`given`, with every field that still has its default taken from `saved`, where that has the field.

    What the user set wins; what they left alone follows the run they build on. Nested configurations
    are joined field by field.

    Args:
        given: dataclass instance as parsed from the command line.
        default: the same method's configuration before parsing.
        saved: configuration of the run; may be of another class.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(given):  # type: ignore[arg-type]
        if field.name.startswith("_") or not hasattr(saved, field.name):
            continue
        mine, usual, theirs = (getattr(config, field.name) for config in (given, default, saved))
        if dataclasses.is_dataclass(mine) and isinstance(mine, type(theirs)) and type(mine) is type(usual):
            changes[field.name] = adopt(mine, usual, theirs)
        elif mine == usual:
            changes[field.name] = theirs
    return dataclasses.replace(given, **changes)  # type: ignore[type-var]
