"""Applying a translator to files: pictures, folders of them, clips."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from csd_nerf.display import Display
from csd_nerf.editors.observer import Work
from csd_nerf.errors import check
from csd_nerf.files import check_folder_writable
from csd_nerf.media import (
    CLIP_SUFFIXES,
    PICTURE_SUFFIXES,
    check_clip_output,
    check_picture_output,
    read_clip,
    read_picture,
    write_clip,
    write_picture,
)
from csd_nerf.translation.crops import folder_of_pictures
from csd_nerf.translation.kept_frames import KeptFrames
from csd_nerf.translation.model_file import TrainedTranslator

Item = TypeVar("Item")


def translate_files(
    translator: TrainedTranslator, target: int, source: Path, output: Path, *, force: bool, console: Console
) -> None:
    """Translate what is in a file or a folder.

    Args:
        translator, target: see `TrainedTranslator.translate`.
        source: a picture, a folder of pictures, or a clip.
        output: see `csd-nerf translate apply --help`.
        force: replace what is there.
        console: to show progress on.

    Raises:
        InputError: a source that cannot be read, or an output that cannot be written.
    """
    if source.suffix.lower() in PICTURE_SUFFIXES and not source.is_dir():
        check_picture_output(output, force=force)
        _translate_picture(translator, target, source, output, force)
    elif source.is_dir() and output.suffix.lower() not in CLIP_SUFFIXES:
        _translate_folder(translator, target, source, output, force, console)
    else:
        check_clip_output(output, force=force)
        _translate_clip(translator, target, source, output, force, console)


def _translate_picture(
    translator: TrainedTranslator, target: int, source: Path, output: Path, force: bool
) -> None:
    picture = read_picture(source)
    translated = translator.translate(picture.pixels, target)
    write_picture(dataclasses.replace(picture, pixels=translated), output, force=force)


def _translate_folder(
    translator: TrainedTranslator, target: int, source: Path, output: Path, force: bool, console: Console
) -> None:
    files = folder_of_pictures(source)
    check(
        not output.suffix and (output.is_dir() or not output.exists()),
        f"{output} cannot take the pictures of a folder",
        expected="a name without an ending for a folder, or one ending in " + ", ".join(CLIP_SUFFIXES),
        got="a file of that name" if output.is_file() else output.suffix,
        hint="choose another --output",
    )
    check_folder_writable(output.parent)
    output.mkdir(exist_ok=True)
    missing = [file for file in files if force or not (output / file.name).exists()]
    if len(missing) < len(files):
        console.print(f"{len(files) - len(missing)} of {len(files)} pictures are there already")

    def translate(file: Path) -> None:
        _translate_picture(translator, target, file, output / file.name, force)

    for _ in _watched(map(translate, missing), len(missing), "pictures", console):
        pass


def _translate_clip(
    translator: TrainedTranslator, target: int, source: Path, output: Path, force: bool, console: Console
) -> None:
    clip = read_clip(source)
    identity = {
        "clip": f"{source.resolve()}, {len(clip)} frames of {clip.width} x {clip.height}",
        "translator": translator.digest(),
        "prompt": translator.prompts[target],
    }
    check_folder_writable(output.parent)
    kept = KeptFrames(output, identity, fresh=force)
    if len(kept):
        console.print(f"{len(kept)} of {len(clip)} frames are there already")
    frames = (
        kept.frame(number, partial(translator.translate, frame, target)) for number, frame in enumerate(clip)
    )
    write_clip(_watched(frames, len(clip), "frames", console), output, like=clip, force=force)
    kept.remove()


def _watched(items: Iterable[Item], count: int, unit: str, console: Console) -> Iterator[Item]:
    """Items as they are made, with the time that is left."""
    work = Work("translate", "Translate", count, unit)
    with Display([work], console) as display:
        began = time.monotonic()
        display.begin(work, 0)
        for number, item in enumerate(items, start=1):
            yield item
            display.update(work, number)
        display.finish(work, time.monotonic() - began)
