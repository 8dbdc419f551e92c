"""Finding a trained run, and taking over from it what the user did not say otherwise."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from nerfstudio.engine.trainer import TrainerConfig
from numpy.core.multiarray import scalar  # type: ignore[attr-defined]

from csd_nerf.checkpoints import whole_checkpoints
from csd_nerf.errors import InputError
from csd_nerf.nerf.config_loader import read_config

Config = TypeVar("Config")


def _scalar_of_numpy_2(*parts: Any) -> Any:
    return scalar(*parts)


# By what name numpy 2 writes it into files.
_scalar_of_numpy_2.__module__ = "numpy._core.multiarray"
_scalar_of_numpy_2.__name__ = _scalar_of_numpy_2.__qualname__ = "scalar"

# nerfstudio checkpoints hold numpy scalars (its schedulers' learning rates); torch 2.6 and later load
# only listed types. These are data, not code.
torch.serialization.add_safe_globals([scalar, _scalar_of_numpy_2, np.dtype, type(np.dtype(np.float64))])


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
    # A checkpoint cut short by a kill or a full disk is left out: the one before it is used.
    whole = whole_checkpoints(checkpoints)
    chosen = whole.get(step) if step is not None else next(reversed(whole.values()), None)
    if chosen is None:
        wanted = "step-*.ckpt" if step is None else f"step-{step:09d}.ckpt"
        raise InputError(
            f"there is no checkpoint in {folder}",
            expected=f"{checkpoints.name}/{wanted}, as nerfstudio writes it",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "an empty folder",
            hint="pass the folder that holds config.yml and nerfstudio_models, "
            "usually outputs/SCENE/METHOD/TIME",
        )
    return Run(chosen, _read_config(checkpoints.parent))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A nerfstudio checkpoint, on the CPU.

    Raises:
        InputError: when it is cut short, not a checkpoint, or holds more than data.
    """
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file} cannot be read",
            expected="a whole checkpoint of nerfstudio, tensors and numbers only",
            got=_first_line(error),
            hint="pass another checkpoint of the run, or train it again",
        ) from error
    if not isinstance(loaded, dict) or not {"pipeline", "step"} <= loaded.keys():
        raise InputError(
            f"{file} is not a checkpoint of nerfstudio",
            expected="its entries pipeline, optimizers, step ...",
            got=", ".join(map(str, loaded))[:100] if isinstance(loaded, dict) else type(loaded).__name__,
            hint="pass the run folder that `ns-train csd-nerfacto` wrote",
        )
    return loaded


def _first_line(error: Exception) -> str:
    """What it says, without the colours that torch gives it."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _read_config(folder: Path) -> TrainerConfig | None:
    file = folder / "config.yml"
    if not file.exists():
        return None
    config = read_config(file)
    try:
        problem = None if isinstance(config, TrainerConfig) else type(config).__name__
        problem = problem or _add_new_settings(config)
    except RecursionError:
        problem = "settings that hold themselves"
    if problem is not None:
        raise InputError(
            f"{file} is not a training configuration",
            expected="the config.yml that nerfstudio wrote when the run was trained",
            got=problem,
            hint="pass the folder of a run trained with ns-train",
        )
    find_paths(config, copy.copy(config).get_base_dir(), folder)  # of a copy: it names what has no name
    return config


def find_paths(config: TrainerConfig, made: Path, folder: Path) -> None:
    """Let relative paths of a run name what they named where it was made, from wherever it is opened.

    Where that was follows from the run's own relative path. So run, data and source can be moved together.

    Args:
        config: of the run.
        made: its folder, as its configuration has it.
        folder: where it is.
    """
    if made.is_absolute():
        return
    folder = folder.resolve()
    above = folder.parents[min(len(made.parts), len(folder.parents)) - 1]
    if above == Path.cwd() or above / made != folder:
        return
    pipeline: Any = config.pipeline
    manager = pipeline.datamanager
    for owner, name in (
        (config, "data"),
        (manager, "data"),
        (getattr(manager, "dataparser", None), "data"),
        (pipeline, "source_checkpoint"),
    ):
        path = getattr(owner, name, None)
        if isinstance(path, Path) and path != Path() and (above / path).exists():
            setattr(owner, name, above / path)


def _add_new_settings(config: Any) -> str | None:
    """Give the configuration of a run by an earlier version the settings that came since, at their defaults.

    Those with a plain default have it already, from their class.

    Returns:
        What is wrong: the name of a part that is none of settings.
    """
    for field in dataclasses.fields(config):
        if field.default_factory is dataclasses.MISSING:
            usual = None
        else:
            usual = field.default_factory()
            if not hasattr(config, field.name):
                setattr(config, field.name, usual)
        value = getattr(config, field.name, None)
        if _is_settings(value):
            if problem := _add_new_settings(value):
                return f"{field.name}: {problem}"
        elif _is_settings(usual):
            return f"{field.name}: {type(value).__name__}"
    return None


def _is_settings(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def adopt(
    given: Config, default: Config, saved: object, said: Collection[str] = frozenset(), path: str = ""
) -> Config:
    """`given`, with every field that the user left alone taken from `saved`, where that has the field.

    What the user set wins, also to its default; what they left alone follows the run they build on. Nested
    configurations are joined field by field.

    Args:
        given: dataclass instance as parsed from the command line.
        default: the same method's configuration before parsing.
        saved: configuration of the run; may be of another class.
        said: options in the command line, see `csd_nerf.settings_files.options_given`.
        path: what the fields' names begin with there, such as `pipeline.`.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(given):  # type: ignore[arg-type]
        if field.name.startswith("_") or not hasattr(saved, field.name):
            continue
        mine, usual, theirs = (getattr(config, field.name) for config in (given, default, saved))
        if dataclasses.is_dataclass(mine) and isinstance(mine, type(theirs)) and type(mine) is type(usual):
            changes[field.name] = adopt(mine, usual, theirs, said, f"{path}{field.name}.")
        elif mine == usual and f"{path}{field.name}" not in said:
            changes[field.name] = theirs
    return dataclasses.replace(given, **changes)  # type: ignore[type-var]
