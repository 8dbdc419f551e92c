"""What decides the outcome of a demo, and the folder that remembers it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csd_nerf.errors import InputError, option
from csd_nerf.files import LOCK, hold, write_text

_WAIT = "wait for it to end, or pass another --output"


@dataclass(frozen=True)
class Sizes:
    """Sizes that are not options of the command: together they make the demo fit two CPU cores.

    Attributes:
        views: pictures of the procedural scene.
        size: their side, in pixels.
        picture_size: short side of the before/after pictures, in pixels.
        turntable_size: short side of the turntable's two pictures, in pixels.
        turntable_frames: frames of the turntable.
        train_arguments: added to `ns-train csd-nerfacto-tiny`.
        edit_arguments: added to `ns-train csd-edit-tiny`.
    """

    views: int = 60
    size: int = 128
    picture_size: int = 256
    turntable_size: int = 160
    turntable_frames: int = 48
    train_arguments: tuple[str, ...] = ("--steps-per-save", "200")
    edit_arguments: tuple[str, ...] = ()


FULL = Sizes()


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides the outcome; a folder holds the outcome of one of these.

    Attributes:
        data: dataset in nerfstudio's format, absolute; None for the procedural scene.
        prompt: instruction of the edit.
        prior: bundled name, or absolute path of a folder in diffusers format.
        train_steps: of the unedited scene.
        edit_steps: of the edit.
        seed: of cameras, training and edit.
        sizes: of scene and pictures.
    """

    data: str | None
    prompt: str
    prior: str
    train_steps: int
    edit_steps: int
    seed: int
    sizes: Sizes

    def as_json(self) -> dict[str, Any]:
        """As JSON gives it back: lists instead of tuples."""
        return json.loads(json.dumps(asdict(self)))


def command_line(output: Path, settings: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The `csd-nerf demo` command that works on `output` with these settings, defaults left out."""
    words = ["csd-nerf", "demo"]
    if output != Path(defaults["output"]):
        words += ["--output", str(output)]
    for name in ("data", "prompt", "prior", "train_steps", "edit_steps", "seed"):
        if settings[name] != defaults[name]:
            words += [option(name), str(settings[name])]
    return shlex.join(words)


def open_folder(folder: Path, settings: DemoSettings, defaults: dict[str, Any]) -> None:
    """Make the demo's folder, or see that what is there was made with the same settings.

    Args:
        folder: of the demo.
        settings: that it is to be made with.
        defaults: of the command's options, to name the command that goes on with what is there.

    Raises:
        InputError: see `claim_folder`.
    """

    def go_on(saved: dict[str, Any], different: list[str]) -> str:
        return "" if "sizes" in different else command_line(folder, saved, defaults)

    claim_folder(folder, settings.as_json(), what="demo", command="csd-nerf demo", go_on=go_on)


def claim_folder(
    folder: Path,
    given: dict[str, Any],
    *,
    what: str,
    command: str,
    go_on: Callable[[dict[str, Any], list[str]], str],
    later: Mapping[str, Any] | None = None,
) -> None:
    """Make a folder that remembers settings, or see that what is there was made with the same.

    Args:
        folder: to work in.
        given: settings, as JSON gives them back.
        what: the folder holds, such as "demo".
        command: that makes such folders.
        go_on: the command that goes on with what is there, from the settings of then and the names of those
            that differ now; empty when there is none.
        later: settings that folders of earlier versions do not mention, with what holds for those.

    Raises:
        InputError: when the folder cannot be made, holds something else, was made with other settings, or
            when another process works in it.
    """
    file = folder / "settings.json"
    if file.is_file():
        hold(folder / LOCK, of=folder, hint=_WAIT)
        saved = _read(file, given, command, later or {})
        different = [name for name in given if given[name] != saved[name]]
        if different:
            raise _different(folder, saved, given, different, what, go_on(saved, different))
        return
    if folder.is_dir() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise InputError(
            f"{folder} is not a folder of this {what}",
            expected=f"a new or empty folder, or one that `{command}` made",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:5]),
            hint="pass another --output",
        )
    hold(folder / LOCK, of=folder, hint=_WAIT)
    write_text(file, json.dumps(given, indent=1) + "\n")


def _read(file: Path, given: dict[str, Any], command: str, later: Mapping[str, Any]) -> dict[str, Any]:
    try:
        saved = {**later, **json.loads(file.read_text(encoding="utf8"))}
        return {name: saved[name] for name in given}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} cannot be read",
            expected=f"the settings that this version of `{command}` wrote",
            got=f"{type(error).__name__}: {error}",
            hint="pass another --output, or remove the folder to begin again",
        ) from error


def _different(
    folder: Path, saved: dict[str, Any], given: dict[str, Any], names: list[str], what: str, go_on: str
) -> InputError:
    return InputError(
        f"{folder} holds a {what} with other settings",
        expected=", ".join(f"{option(name)} {saved[name]!r}" for name in names),
        got=", ".join(f"{option(name)} {given[name]!r}" for name in names),
        hint="pass another --output" + (f", or go on with it: {go_on}" if go_on else ""),
    )


@dataclass
class StageRecord:
    """What a stage took so far: seconds over all its runs, and how many runs that were."""

    seconds: float = 0.0
    runs: int = 0


class Progress:
    """`progress.json` of a demo: the record of every stage."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "progress.json"
        self.records: dict[str, StageRecord] = {}
        if self.file.exists():
            saved = json.loads(self.file.read_text(encoding="utf8"))
            self.records = {key: StageRecord(**record) for key, record in saved.items()}

    def __getitem__(self, key: str) -> StageRecord:
        return self.records.setdefault(key, StageRecord())

    def save(self) -> None:
        """Write it, whole or not at all."""
        saved = {key: asdict(record) for key, record in self.records.items()}
        write_text(self.file, json.dumps(saved, indent=1) + "\n")
