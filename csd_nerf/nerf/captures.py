"""The check of a capture before the work: what the training will read is there, whole and of one mind."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import (
    MAX_AUTO_RESOLUTION,
    NerfstudioDataParserConfig,
)
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import Progress
from rich.text import Text
from torch import Tensor

from csd_nerf.errors import InputError, check
from csd_nerf.nerf.formats import RECORD3D, Format, format_of, read_split
from csd_nerf.nerf.photos import (
    check_mask_shape,
    check_mode,
    check_whole,
    has_white,
    opened,
    seen_by_camera,
)
from csd_nerf.nerf.record3d import photos_of
from csd_nerf.nerf.transforms import read_transforms

LENS = ("fl_x", "fl_y", "cx", "cy", "h", "w")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")

BAR_AFTER = 1.0
"""Seconds after which a bar shows how many of a capture's files have been looked into."""

_READERS = 8
"""Files that are looked into at once; most of the time goes to waiting for the disk."""

_HOW = "pass `--data SCENE`, a folder made by `ns-process-data` with transforms.json and images"
_AGAIN = "remove those frames, or run `ns-process-data` again"


def check_dataset(
    data: Path | None, dataparser: DataParserConfig, at_least: int = 1, hint: str = _HOW
) -> None:
    """See that a dataset is there and whole before anything is built from it.

    Only nerfstudio's own format (`transforms.json`) is looked into, as `read_transforms` puts it right; other
    dataparsers report for themselves. Of photos and masks the headers are read, and the last bytes.

    Args:
        data: its folder, or its transforms.json.
        dataparser: what will read it.
        at_least: how many frames it must have.
        hint: what to do where there is none.

    Raises:
        InputError: when no dataset was given, or it is missing or of another format, lists no cameras, lacks
            lenses, images or masks, has poses or splits that cannot be used, or photos and masks that cannot
            be read or do not fit their cameras.
    """
    if data is None or data == Path():
        raise InputError("no dataset was given", expected="a captured scene", got="nothing", hint=hint)
    if not isinstance(dataparser, NerfstudioDataParserConfig):
        return
    file = data if data.suffix == ".json" else data / "transforms.json"
    if not file.exists():
        got = "no such folder" if not data.exists() else f"{data} without transforms.json"
        found = format_of(data)
        raise InputError(
            f"there is no dataset at {data}", expected=str(file), got=got, hint=found.hint if found else hint
        )
    content = _read(file)
    frames = content["frames"]
    _say_left_out(file, content)
    _check_frames(file, frames, at_least)
    _check_lenses(file, content)
    for entry, kind in (("mask_path", "mask"), ("depth_file_path", "depth picture")):
        _check_in_all_or_none(file, frames, entry, kind)
    for entry, kind in (("file_path", "images"), ("mask_path", "masks")):
        _check_listed(file, [frame[entry] for frame in frames if entry in frame], kind)
    _check_poses(file, frames, dataparser)
    _check_splits(file, content, dataparser)
    _check_files(file, content, dataparser)


def check_capture(data: Path, at_least: int) -> None:
    """See that a capture of any format that is recognised can be trained on, by the words of that format.

    Args:
        data: its folder, or its transforms.json.
        at_least: how many photos it must have.

    Raises:
        InputError: see `check_dataset` and `photos_of`; a capture that the dataparser of its format cannot
            read, or whose photos cannot be read or do not fit their cameras.
    """
    found = format_of(data)
    if found is RECORD3D:
        _for_all(_check_readable, photos_of(data, at_least).values())
    elif found is None or found.parser is None:
        check_dataset(data, NerfstudioDataParserConfig(), at_least)
    else:
        _check_parsed(data, found, at_least)


def _check_parsed(data: Path, found: Format, at_least: int) -> None:
    """Let nerfstudio's dataparser read the cameras of all splits, and look into their photos."""
    config: Any = found.dataparser(data)
    if hasattr(config, "load_3D_points"):
        config.load_3D_points = False  # which take long, and are not looked at
    file = data if data.suffix == ".json" else data / "transforms.json"
    if file.exists():
        content = _read(file)
        _say_left_out(file, content)
        _check_frames(file, content["frames"], at_least)
        _check_listed(file, [frame["file_path"] for frame in content["frames"]], "images")
    sizes: dict[Path, tuple[int, int]] = {}
    poses: dict[Path, Tensor] = {}
    try:
        for split in ("train", "val"):
            outputs = read_split(config.setup(), split)
            sides = torch.cat([outputs.cameras.width, outputs.cameras.height], -1).tolist()
            sizes |= dict(zip(outputs.image_filenames, map(tuple, sides), strict=True))
            poses |= dict(zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True))
    except (AssertionError, OSError, LookupError, ValueError, TypeError, RuntimeError, struct.error) as error:
        raise InputError(
            f"{data} cannot be read",
            expected=f"{found.name}, as `{' '.join(found.words)}` reads it",
            got=" ".join(str(error).split())[:200] or type(error).__name__,
            hint="correct it, or run `ns-process-data` on the photos and pass what that makes",
        ) from error
    check(
        len(sizes) >= at_least,
        f"{data} has too few photos",
        expected=f"at least {at_least}",
        got=f"{len(sizes)}",
        hint="capture more photos, from all around",
    )
    unusable = [path for path, pose in poses.items() if not pose.isfinite().all()]
    check(
        not unusable,
        f"{len(unusable)} of {len(poses)} poses of {data} cannot be used",
        expected="finite numbers, from several places",
        got=f"numbers that are not finite, such as those of {unusable[0]}" if unusable else "",
        hint="take these photos out of it, or run `ns-process-data` on the photos and pass what that makes",
    )
    _for_all(_check_photo, sizes.keys(), sizes.values())


def _say_left_out(file: Path, content: dict[str, Any]) -> None:
    left_out = content.get("left_out")
    if left_out:
        listed = len(content["frames"]) + len(left_out)
        words = f"{len(left_out)} of {listed} photos that {file} lists are missing, such as {left_out[0]}"
        CONSOLE.print(Text(f"{words}: going on without.", "bold yellow"), soft_wrap=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_transforms(file)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read", expected="a JSON object", got=str(error), hint=_HOW
        ) from error
    if not content.get("frames"):
        raise InputError(
            f"{file} lists no cameras",
            expected='a "frames" list with file_path and transform_matrix',
            got="no frames",
            hint="run `ns-process-data` again; if COLMAP found no poses, add photos that overlap more",
        )
    return content


def _check_frames(file: Path, frames: Any, at_least: int) -> None:
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(
            f"{file} cannot be read",
            expected='"frames": a list of objects',
            got="something else",
            hint=_HOW,
        )
    if len(frames) < at_least:
        raise InputError(
            f"{file} has too few frames",
            expected=f"at least {at_least}",
            got=f"{len(frames)}",
            hint="capture more photos, from all around",
        )
    without_pose = [frame for frame in frames if "file_path" not in frame or "transform_matrix" not in frame]
    if without_pose:
        raise InputError(
            f"{file} has frames without a camera",
            expected="file_path and transform_matrix in every frame",
            got=f"{len(without_pose)} of {len(frames)} frames without one of them",
            hint=_AGAIN,
        )
    for entry in ("file_path", "mask_path", "depth_file_path"):
        odd = [frame[entry] for frame in frames if not isinstance(frame.get(entry, ""), str)]
        check(
            not odd,
            f"{file} has frames whose {entry} is no path",
            expected=f"a path in quotes, or no {entry}",
            got=f"{json.dumps(odd[0])[:80]} in {len(odd)} of {len(frames)} frames" if odd else "",
            hint=f"take {entry} out of these frames" if entry != "file_path" else _AGAIN,
        )


def _check_lenses(file: Path, content: dict[str, Any]) -> None:
    frames = content["frames"]
    needed = set(LENS) - content.keys()
    without_lens = [frame for frame in frames if needed - frame.keys()]
    if without_lens:
        found = format_of(file)
        raise InputError(
            f"{file} has frames without a lens",
            expected="fl_x, fl_y, cx, cy, w and h, in pixels, for all frames at once or in each",
            got=f"no {', '.join(sorted(needed - without_lens[0].keys()))} in {len(without_lens)} frames",
            hint=found.hint if found else "run `ns-process-data` again",
        )
    for holder in (content, *frames):
        for name in LENS + DISTORTION:
            if name in holder:
                _check_number(file, name, holder[name])
    models = [holder["camera_model"] for holder in (content,) if "camera_model" in holder]
    check(
        all(isinstance(model, str) and model in CAMERA_MODEL_TO_TYPE for model in models),
        f"{file} has a camera_model that nerfstudio does not know",
        expected=", ".join(CAMERA_MODEL_TO_TYPE),
        got="".join(map(str, models)),
        hint="undistort the photos (`colmap image_undistorter`) and write PINHOLE",
    )


def _check_number(file: Path, name: str, value: Any) -> None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
        number = float(int(value)) if name in ("h", "w") else number
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    positive = name in ("h", "w", "fl_x", "fl_y")
    check(
        math.isfinite(number) and (number > 0 or not positive),
        f"{file} has a {name} that is no {'size' if positive else 'number'}",
        expected="a number" + (" above 0, in pixels" if positive else ""),
        got=json.dumps(value)[:80],
        hint="correct it, or run `ns-process-data` again",
    )


def _check_in_all_or_none(file: Path, frames: list[dict[str, Any]], entry: str, kind: str) -> None:
    having = sum(entry in frame for frame in frames)
    if 0 < having < len(frames):
        raise InputError(
            f"some frames of {file} have no {kind}",
            expected=f"a {entry} in every frame, or in none",
            got=f"{having} of {len(frames)} frames with one",
            hint=f"make the missing {kind}s, or take {entry} out of all frames",
        )


def _check_listed(file: Path, listed: list[str], kind: str) -> None:
    missing = [name for name in listed if not _is_file(file.parent / name)]
    if missing:
        first = file.parent / missing[0]
        raise InputError(
            f"{len(missing)} of {len(listed)} {kind} of {file.parent} are missing",
            expected=str(first),
            got="no such file",
            hint=f"copy the {kind} next to transforms.json, or remove their frames from it",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _check_poses(file: Path, frames: list[dict[str, Any]], dataparser: NerfstudioDataParserConfig) -> None:
    poses = []
    for frame in frames:
        try:
            pose = np.array(frame["transform_matrix"]).astype(np.float32)
        except (TypeError, ValueError):
            pose = np.empty(0, np.float32)
        usable = pose.shape == (4, 4) and bool(np.isfinite(pose).all())
        check(
            usable and abs(np.linalg.det(pose[:3, :3])) > 1e-12,
            f"the pose of {frame['file_path']} in {file} cannot be used",
            expected="a transform_matrix of 4 x 4 finite numbers, camera to world, that turns and moves",
            got=f"{' x '.join(map(str, pose.shape))} numbers"
            if pose.shape != (4, 4)
            else "numbers that are not finite"
            if not usable
            else "a matrix that flattens everything",
            hint=_AGAIN,
        )
        poses.append(pose)
    places = np.stack(poses)[:, :3, 3].astype(np.float64)
    spread = np.abs(places - places.mean(0)).max()
    if dataparser.auto_scale_poses and spread <= 1e-6 * np.abs(places).max():
        raise InputError(
            f"all cameras of {file} are in one place",
            expected="photos from several places, around what they show",
            got="one photo" if len(frames) == 1 else f"{len(frames)} photos from one point",
            hint="walk around while capturing: turning on the spot shows no depth",
        )


def _check_splits(file: Path, content: dict[str, Any], dataparser: NerfstudioDataParserConfig) -> None:
    keys = [f"{split}_filenames" for split in ("train", "val", "test")]
    given = [key for key in keys if key in content]
    listed = {Path(frame["file_path"]) for frame in content["frames"]}
    if given:
        check(
            given == keys,
            f"{file} lists the photos of some splits only",
            expected=", ".join(keys),
            got=", ".join(given),
            hint="add the missing lists (test_filenames may repeat val_filenames), or remove all three",
        )
        for key in keys:
            names = content[key]
            right = isinstance(names, list) and all(isinstance(name, str) for name in names)
            absent = [name for name in names if Path(name) not in listed] if right else []
            check(
                right and not absent and (bool(names) or key != "train_filenames"),
                f"{key} of {file} cannot be used",
                expected="a list of file_path entries of its frames",
                got=f"{len(absent)} that no frame has, such as {absent[0]}"
                if absent
                else json.dumps(names)[:80],
                hint=f"correct {key}, or remove the lists of all three splits",
            )
    elif dataparser.eval_mode == "filename":
        neither = [str(path) for path in listed if not {"train", "eval"} & _words(path.name)]
        check(
            not neither,
            f"{len(neither)} of {len(listed)} photos of {file} are of no split",
            expected="`train` or `eval` in the name of every photo, for --eval-mode filename",
            got=min(neither, default=""),
            hint="choose another --eval-mode, such as fraction",
        )


def _words(name: str) -> set[str]:
    return {word for word in ("train", "eval") if word in name}


def _check_files(file: Path, content: dict[str, Any], dataparser: NerfstudioDataParserConfig) -> None:
    """Look into photos and masks, the reduced copies where nerfstudio will read these."""
    frames = content["frames"]
    factor = dataparser.downscale_factor or _reduced_by(file.parent, frames[0]["file_path"])
    photos = [_copy(file.parent, frame["file_path"], "images", factor) for frame in frames]
    masks = [
        _copy(file.parent, frame["mask_path"], "masks", factor) for frame in frames if "mask_path" in frame
    ]
    for kind, paths in (("images", photos), ("masks", masks)):
        missing = [path for path in paths if not _is_file(path)]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} {kind} of {file.parent}, reduced by {factor}, are missing",
                expected=str(missing[0]),
                got="no such file",
                hint=f"make them, or read the {kind} as they are: end the command with `nerfstudio-data "
                "--downscale-factor 1`",
            )
    sizes = [
        tuple(int(int(content.get(side, frame.get(side))) / factor) for side in ("w", "h"))
        for frame in frames
    ]
    _for_all(_check_photo, photos, sizes)
    if masks:
        _for_all(_check_mask, masks, sizes)
        check(
            any(map(has_white, masks)),
            f"the masks of {file.parent} are all black",
            expected="masks that are white where photos count",
            got=f"{len(masks)} without anything white",
            hint="correct the masks, or take mask_path out of all frames",
        )


def _reduced_by(folder: Path, first_photo: str) -> int:
    """The factor that nerfstudio's dataparser settles on, from the first photo and its reduced copies."""
    with opened(folder / first_photo) as photo:
        longest = max(photo.size)
    factor = 1
    while (
        longest / factor > MAX_AUTO_RESOLUTION and _copy(folder, first_photo, "images", 2 * factor).exists()
    ):
        factor *= 2
    return factor


def _copy(folder: Path, name: str, kind: str, factor: int) -> Path:
    return folder / f"{kind}_{factor}" / Path(name).name if factor > 1 else folder / name


def _for_all(look: Callable[..., None], paths: Iterable[Path], *sizes: Iterable[Any]) -> None:
    """Look into files, several at once; on a terminal with a bar, where it takes long."""
    paths, began = list(paths), time.monotonic()
    bar = Progress(console=CONSOLE, transient=True)
    task = bar.add_task(f"Looking into {len(paths)} files", total=len(paths))
    with ThreadPoolExecutor(_READERS) as pool, ExitStack() as shown:
        for done, _ in enumerate(pool.map(look, paths, *sizes), start=1):
            if CONSOLE.is_terminal and not bar.live.is_started and time.monotonic() - began > BAR_AFTER:
                shown.enter_context(bar)
            bar.update(task, completed=done)


def _check_readable(path: Path) -> None:
    with opened(path) as photo:
        check_mode(photo, path)
        check_whole(photo, path)


def _check_photo(path: Path, size: tuple[int, int]) -> None:
    with opened(path) as photo:
        check_mode(photo, path)
        seen_by_camera(photo, path, size)
        check_whole(photo, path)


def _check_mask(path: Path, size: tuple[int, int]) -> None:
    with opened(path) as mask:
        check_mask_shape(mask, path, size)
        check_whole(mask, path)
