"""`python -m csd_nerf.nerf.record3d`: cameras of a Record3D export, in nerfstudio's format.

As `ns-process-data record3d`, but photos stay where they are, so that nothing besides is needed (ffmpeg).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from csd_nerf.errors import InputError, check, exit_on_input_error

MOST_PHOTOS = 300
"""An export is a video; so many frames of it are taken, spread evenly, as `ns-process-data` does."""

_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass
class Record3DOptions:
    """Write the transforms.json of a Record3D export."""

    data: Path
    """Folder of the export: metadata.json and rgb, or EXR_RGBD with both."""
    output: Path
    """Folder to be made, for transforms.json alone."""


def main() -> None:
    """Read the command line and write."""
    with exit_on_input_error():
        options = tyro.cli(Record3DOptions, prog="python -m csd_nerf.nerf.record3d")
        write_cameras(options.data, options.output)


def photos_of(data: Path, at_least: int = 1) -> dict[int, Path]:
    """Photos of an export by the number of their pose.

    Args:
        data: folder of the export.
        at_least: how many it must have.

    Raises:
        InputError: no metadata.json that can be read, with poses and a lens; too few photos with a pose.
    """
    export = _export(data)
    try:
        content: dict[str, Any] = json.loads((export / "metadata.json").read_text(encoding="utf8"))
        poses, lens = content["poses"], (content["K"], content["w"], content["h"])
        right = len(lens[0]) == 9 and all(len(pose) == 7 for pose in poses)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _not_an_export(export, f"{type(error).__name__}: {error}") from error
    pictures = [path for path in (export / "rgb").glob("*") if path.suffix.lower() in _ENDINGS]
    found = {int(path.stem): path for path in pictures if path.stem.isdecimal()}
    photos = {number: found[number] for number in sorted(found) if number < len(poses)}
    if not right:
        raise _not_an_export(export, "poses or K of other lengths")
    check(
        len(photos) >= at_least,
        f"{export} has too few photos",
        expected=f"at least {at_least} in {export / 'rgb'}, named by the number of their pose: 0.jpg",
        got=f"{len(photos)}, and {len(poses)} poses",
        hint="copy the whole export, or capture for longer",
    )
    kept = sorted(photos)[:: -(-len(photos) // MOST_PHOTOS)]
    return {number: photos[number] for number in kept}


def write_cameras(data: Path, output: Path) -> None:
    """Write transforms.json, which appears when it is whole.

    Args:
        data: folder of the export.
        output: folder to be made.

    Raises:
        InputError: see `photos_of`.
    """
    import numpy as np
    from nerfstudio.process_data.record3d_utils import record3d_to_json

    photos = photos_of(data)
    partial = output.with_name(f".{output.name}-unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    paths = [path.resolve() for path in photos.values()]
    record3d_to_json(paths, _export(data) / "metadata.json", partial, np.array(list(photos)))
    os.replace(partial, output)
    print(f"{len(photos)} photos with their cameras", flush=True)


def _export(data: Path) -> Path:
    return data / "EXR_RGBD" if (data / "EXR_RGBD").is_dir() else data


def _not_an_export(export: Path, got: str) -> InputError:
    return InputError(
        f"{export} cannot be read as an export of Record3D",
        expected='metadata.json with "poses" of 7 numbers, "K" of 9, "w" and "h", beside rgb',
        got=got,
        hint='export it again as "EXR + JPG sequence"',
    )


if __name__ == "__main__":
    main()
