"""nerfstudio's `transforms.json`, read as it was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PATHS = ("file_path", "mask_path", "depth_file_path")
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_SAME_MODEL = {"SIMPLE_RADIAL_FISHEYE": "OPENCV_FISHEYE", "RADIAL_FISHEYE": "OPENCV_FISHEYE"}
"""COLMAP's fisheyes of one and two numbers are OpenCV's, whose other numbers are zero."""

LEAST_LEFT = 0.5
"""Share of the listed photos that must be there; with fewer it is another capture than the one listed."""


def read_transforms(file: Path) -> dict[str, Any]:
    """What a transforms.json means, in the words of nerfstudio's dataparser.

    What can be put right is: entries that are null (as if absent), poses without their last row, paths with
    backslashes, without an ending or in another case than the file, COLMAP's simple fisheyes, photos that are
    listed and not there (left out while at least half are), and the list of a split that is left out. What
    else may be wrong stays as it is, for `check_dataset` to refuse.

    Args:
        file: it.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is no JSON.
    """
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        return content
    if not all(isinstance(frame.get("file_path", ""), str | None) for frame in frames):
        return content
    content = _without_nulls(content)
    content["frames"] = frames = [_without_nulls(frame) for frame in frames]
    model = content.get("camera_model")
    if isinstance(model, str) and model in _SAME_MODEL:
        content["camera_model"] = _SAME_MODEL[model]
    for frame in frames:
        for entry in _PATHS:
            if isinstance(frame.get(entry), str):
                frame[entry] = _found(file.parent, frame[entry])
        pose = frame.get("transform_matrix")
        if isinstance(pose, list) and len(pose) == 3:
            frame["transform_matrix"] = [*pose, [0.0, 0.0, 0.0, 1.0]]
    missing = missing_photos(file.parent, frames)
    if 0 < len(missing) <= (1 - LEAST_LEFT) * len(frames):
        content["frames"] = [frame for frame in frames if frame.get("file_path") not in missing]
        content["left_out"] = sorted(missing)
    _complete_splits(file.parent, content)
    return content


def missing_photos(folder: Path, frames: list[dict[str, Any]]) -> set[str]:
    """Paths of photos that are not there."""
    listed = {frame["file_path"] for frame in frames if "file_path" in frame}
    return {name for name in listed if not _is_file(folder / name)}


def _without_nulls(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


def _complete_splits(folder: Path, content: dict[str, Any]) -> None:
    """Let all three lists be there, if one is, and name photos as the frames do."""
    given = [name for name in _SPLITS if isinstance(content.get(name), list)]
    if not given or not all(isinstance(path, str) for name in given for path in content[name]):
        return
    left_out = set(content.get("left_out", ()))
    for name in given:
        found = [_found(folder, path) for path in content[name]]
        content[name] = [path for path in found if path not in left_out]
    held_out = {path for name in _SPLITS[1:] for path in content.get(name, ())}
    rest = [frame.get("file_path") for frame in content["frames"] if frame.get("file_path") not in held_out]
    content.setdefault("train_filenames", rest)
    for name, other in (("val_filenames", "test_filenames"), ("test_filenames", "val_filenames")):
        if other in content:
            content.setdefault(name, content[other])


def _found(folder: Path, name: str) -> str:
    """The path that is meant, where a file fits: with slashes, its ending, its own case; else as given."""
    for path in (Path(name), Path(name.replace("\\", "/"))):
        wanted = folder / path
        if _is_file(wanted):
            return name if str(path) == str(Path(name)) else path.as_posix()
        names = {wanted.name.lower(), *(f"{wanted.name.lower()}{ending}" for ending in _ENDINGS)}
        if _is_folder(wanted.parent):
            like = sorted(other.name for other in wanted.parent.iterdir() if other.name.lower() in names)
            if like:
                return (path.parent / like[0]).as_posix()
    return name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
