"""Clips of any length: read frame by frame, as often as needed, with their timing and sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.media.hdr import HLG, PQ, as_seen
from csd_nerf.media.picture_files import PICTURE_SUFFIXES, read_picture

FOLDER_FRAME_RATE = Fraction(24)
"""Frames per second of a folder of pictures, which does not say."""

WIDEST_PIXEL = Fraction(4)
"""Sample aspect ratio, or its inverse, up to which a file is believed."""


@dataclass(frozen=True)
class Clip:
    """A clip on disk. Iterating decodes it anew, holding a frame at a time: (3, H, W), RGB in 0..1, upright.
    Pixels are square, and what is of high dynamic range is tone-mapped.

    Args:
        path: file, or folder of pictures.
        frames: how many there are.
        height, width: of every frame, in pixels, upright.
        frame_rate: frames per second; the average where `times` are given.
        times: seconds from the start of the clip at which each frame is shown; None when frame i is shown at
            `i / frame_rate`.
        audio: whether there is sound.

    Example:
        >>> clip = read_clip(Path("wolf.mp4"))                                            # doctest: +SKIP
        >>> write_clip((1 - frame for frame in clip), Path("negative.mp4"), like=clip)    # doctest: +SKIP
    """

    path: Path
    frames: int
    height: int
    width: int
    frame_rate: Fraction
    times: tuple[Fraction, ...] | None = None
    audio: bool = False

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Float[Tensor, "3 h w"]]:
        if self.path.is_dir():
            for picture in frame_files(self.path):
                yield read_picture(picture).pixels
            return
        for frame, stream in _decoded(self.path):
            turned = np.rot90(_pixels(frame, stream), frame.rotation // 90)
            yield torch.from_numpy(turned.transpose(2, 0, 1).copy())


def read_clip(path: Path, frame_rate: Fraction | None = None) -> Clip:
    """Look through a clip: a video or GIF in any container that FFmpeg knows, or a folder of pictures.

    Every frame is decoded once, and none is kept, so that a damaged clip is refused before it is worked on.
    The pictures of a folder are taken in the order of the numbers in their names.

    Args:
        path: file or folder.
        frame_rate: of a folder, in frames per second; None is `FOLDER_FRAME_RATE`.

    Raises:
        InputError: no such file; one that is empty, truncated or no video; no frames; frames of several
            sizes; a frame rate for a file, which has its own.
    """
    if path.is_dir():
        return _look_through_folder(path, FOLDER_FRAME_RATE if frame_rate is None else frame_rate)
    if frame_rate is not None:
        raise InputError(
            f"{path} has a frame rate of its own",
            expected="--frame-rate with a folder of pictures only",
            got=f"a file and {frame_rate} frames per second",
            hint="leave out --frame-rate",
        )
    if not path.is_file():
        raise InputError(
            f"there is no clip {path}",
            expected="a video, a GIF or a folder of pictures",
            got="no such file",
            hint="check the path",
        )
    if path.stat().st_size == 0:
        raise _unreadable(path, "an empty file")
    return _look_through_file(path)


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]

    files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    return sorted((path for path in files if not path.name.startswith(".")), key=key)


def _look_through_folder(folder: Path, frame_rate: Fraction) -> Clip:
    files = frame_files(folder)
    if not files:
        raise InputError(
            f"{folder} holds no frames",
            expected="pictures: " + ", ".join(PICTURE_SUFFIXES),
            got="none",
            hint="pass a video, or the folder that holds the pictures themselves",
        )
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        height, width = read_picture(file).pixels.shape[1:]
        sizes.setdefault((height, width), file)
    (height, width), *others = sizes
    if others:
        raise _several_sizes(folder, f"{width} x {height}", f"{others[0][1]} x {others[0][0]}")
    return Clip(folder, len(files), height, width, frame_rate)


def _look_through_file(path: Path) -> Clip:
    sizes: dict[tuple[int, int], None] = {}
    times: list[Fraction | None] = []
    for frame, stream in _decoded(path):
        turned = frame.rotation % 180 == 90
        width, height = _square(frame, stream)
        sizes[(width, height) if turned else (height, width)] = None
        times.append(None if frame.pts is None else frame.pts * frame.time_base)
    if not times:
        raise _unreadable(path, "a clip without frames")
    (height, width), *others = sizes
    if others:
        raise _several_sizes(path, f"{width} x {height}", f"{others[0][1]} x {others[0][0]}")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        declared = stream.average_rate or FOLDER_FRAME_RATE
        tick = stream.time_base or Fraction(0)
        start = start_time(container)
        audio = bool(container.streams.audio)
        if "matroska" in container.format.name:
            _check_length(container, path)
    shown = [time - start for time in times if time is not None]
    if len(shown) < len(times):  # raw streams do not say when a frame is shown
        return Clip(path, len(times), height, width, declared, audio=audio)
    measured = (len(shown) - 1) / (shown[-1] - shown[0]) if len(shown) > 1 else declared
    for frame_rate in (declared, measured):
        if all(abs(time - index / frame_rate) <= tick for index, time in enumerate(shown)):
            return Clip(path, len(shown), height, width, frame_rate, audio=audio)
    return Clip(path, len(shown), height, width, measured, tuple(shown), audio)


def start_time(container: Any) -> Fraction:
    """Seconds at which a container begins: other than zero in broadcasts."""
    return Fraction(container.start_time or 0, av.time_base)


def _pixels(frame: Any, stream: Any) -> np.ndarray:
    """A frame (H, W, 3), RGB in 0..1, of square pixels, as an ordinary screen shows it."""
    width, height = _square(frame, stream)
    size = {} if (width, height) == (frame.width, frame.height) else {"width": width, "height": height}
    transfer = stream.codec_context.color_trc
    if transfer not in (PQ, HLG):
        return frame.to_ndarray(format="rgb24", **size).astype(np.float32) / 255
    return as_seen(frame.to_ndarray(format="rgb48le", **size).astype(np.float32) / 65535, transfer)


def _square(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height of a frame whose pixels are made square, by making the shorter side of one longer."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / WIDEST_PIXEL <= ratio <= WIDEST_PIXEL:
        ratio = Fraction(1)
    return round(frame.width * max(ratio, Fraction(1))), round(frame.height / min(ratio, Fraction(1)))


def _decoded(path: Path) -> Iterator[tuple[Any, Any]]:
    """The frames of a file, one at a time, and the stream they are of."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise _unreadable(path, "a file without moving pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise _unreadable(path, "a truncated file")
                for frame in packet.decode():
                    yield frame, stream
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, f"a damaged file or none that FFmpeg knows ({error.strerror})") from error


def _check_length(container: Any, path: Path) -> None:
    """See that the packets reach as far as the header says. Matroska's reader does not miss what is cut off,
    unlike those of other formats that have a header.

    Raises:
        InputError: more than two frames are missing.
    """
    packets = (packet for packet in container.demux() if packet.pts is not None)
    end = max((packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets)
    missing = Fraction(container.duration or 0, av.time_base) - end
    if missing > 2 / container.streams.video[0].average_rate:
        raise _unreadable(path, f"a truncated file, which lacks its last {float(missing):.1f} seconds")


def _several_sizes(path: Path, one: str, other: str) -> InputError:
    return InputError(
        f"the frames of {path} differ in size",
        expected=f"all of {one} pixels, as the first",
        got=f"one of {other}",
        hint="bring them to one size first",
    )


def _unreadable(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} cannot be read as a clip",
        expected="a whole video or GIF, or a folder of pictures",
        got=got,
        hint="check that the file is whole, and that other programs play it",
    )
