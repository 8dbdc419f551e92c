"""Clips written whole or not at all: H.264 that browsers play, GIF, or a folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.files import check_folder_writable, check_free, check_output, remove, whole_file
from csd_nerf.media.clips import Clip, start_time
from csd_nerf.media.picture_files import Picture, to_bytes, write_picture

CLIP_SUFFIXES = (".mp4", ".gif")
"""Endings of clips that can be written. A name without an ending is a folder of pictures."""

QUALITY = 18
"""Of H.264: the constant rate factor, 0 (lossless) to 51. 18 passes for indistinguishable."""

MP4_AUDIO = ("aac", "mp3", "ac3", "eac3", "alac", "opus")
"""Codecs of sound that MP4 takes and players know."""

BT709, LIMITED_RANGE = 1, 1
"""Numbers of the H.264 standard for the colour space that is written and the range of its values."""

GIF_TICKS = 100
"""Per second."""

TICKS = 90000
"""Per second, for frames that are not evenly spaced."""

_FRAME_NAME = "frame-{:05d}.png"
_FRAME_PATTERN = re.compile(r"frame-\d{5,}\.png")


def check_clip_output(path: Path, *, force: bool) -> None:
    """See that a clip can be written, before the work that makes it.

    Args:
        path: ending in one of `CLIP_SUFFIXES`, or without an ending for a folder of pictures.
        force: it may replace a file, or a folder that holds frames and nothing else.

    Raises:
        InputError: as `check_output`; a folder that holds other things.
    """
    if path.suffix:
        check_output(path, CLIP_SUFFIXES, force=force)
        return
    check_free(path, force=force)
    check_folder_writable(path.parent)
    if path.exists():
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
        foreign = [name for name in names if not _FRAME_PATTERN.fullmatch(name)]
        if foreign:
            raise InputError(
                f"{path} holds other things than frames of a clip",
                expected=f"a new folder, or one that holds {_FRAME_NAME.format(1)} and so on alone",
                got=", ".join(sorted(foreign)[:3]),
                hint="choose another folder; this one is not replaced",
            )


def write_clip(
    frames: Iterable[Float[Tensor, "3 h w"]],
    path: Path,
    *,
    like: Clip | None = None,
    frame_rate: Fraction = Fraction(24),
    force: bool = False,
) -> None:
    """Write a clip; an older one is replaced only by a whole one.

    One frame is held at a time. An MP4 is H.264 with 4:2:0 colour, whose sides are even: an odd one grows by
    a pixel that repeats the edge. GIF shows frames to the nearest hundredth of a second, each in 256 colours
    of its own. A folder gets frame-00001.png and so on.

    Args:
        frames: pictures of one size, RGB in 0..1.
        path: see `check_clip_output`.
        like: clip from which frame rate, times and (MP4 only) sound are taken. Its sound is copied as it is
            where MP4 knows its codec, otherwise as AAC, of the nearest rate that AAC has.
        frame_rate: frames per second without `like`.
        force: replace a clip that is there.

    Raises:
        InputError: as `check_clip_output`; no frames; no room on the disk.
    """
    check_clip_output(path, force=force)
    images: Iterator[np.ndarray] = (to_bytes(frame.permute(1, 2, 0)) for frame in frames)
    first = next(images, None)
    if first is None:
        raise InputError(
            f"there are no frames to write to {path}",
            expected="one frame or more",
            got="none",
            hint="check the clip they come from",
        )
    images = chain([first], images)
    timing = _Timing(frame_rate if like is None else like.frame_rate, None if like is None else like.times)
    if not path.suffix:
        _write_folder(images, path)
        return
    with whole_file(path) as partial:
        if path.suffix.lower() == ".gif":
            _write_gif(images, timing, partial)
        else:
            sound = like.path if like is not None and like.audio else None
            _write_mp4(images, timing, sound, partial)


@dataclass(frozen=True)
class _Timing:
    frame_rate: Fraction
    times: tuple[Fraction, ...] | None

    @property
    def tick(self) -> Fraction:
        return 1 / self.frame_rate if self.times is None else Fraction(1, TICKS)

    def frames(self, images: Iterable[np.ndarray]) -> Iterator[Any]:
        """Video frames that know when they are shown, in ticks."""
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = index if self.times is None else round(self.times[index] * TICKS)
            frame.time_base = self.tick
            yield frame


def _write_mp4(images: Iterator[np.ndarray], timing: _Timing, sound: Path | None, path: Path) -> None:
    even = (np.pad(im, ((0, im.shape[0] % 2), (0, im.shape[1] % 2), (0, 0)), mode="edge") for im in images)
    frames = timing.frames(even)
    first = next(frames)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=timing.frame_rate, options={"crf": str(QUALITY)})
        stream.height, stream.width, stream.pix_fmt = first.height, first.width, "yuv420p"
        codec = stream.codec_context
        codec.time_base = timing.tick
        # Players guess the colour space of a clip that does not say, some by its size.
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE
        packets = iter(()) if sound is None else _sound(sound, container)
        waiting = next(packets, None)
        for frame in chain([first], frames):
            # Sound goes in between, in the order of time, so that the container need not hold packets back.
            while waiting is not None and waiting.pts * waiting.time_base <= frame.pts * frame.time_base:
                container.mux(waiting)
                waiting = next(packets, None)
            yuv = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())
        for packet in chain([] if waiting is None else [waiting], packets):
            container.mux(packet)


def _sound(path: Path, container: Any) -> Iterator[Any]:
    """Add a stream for the sound of a file and give its packets.

    The stream is added at once; packets are read as they are asked for.
    """
    source = av.open(str(path))
    heard = source.streams.audio[0]
    offset = start_time(source)
    if heard.codec_context.codec.canonical_name in MP4_AUDIO:
        return _copied(source, container.add_stream_from_template(heard), offset)
    layout = "mono" if heard.layout.nb_channels == 1 else "stereo"
    rates = av.Codec("aac", "w").audio_rates or [heard.rate]
    rate = min(rates, key=lambda known: abs(known - heard.rate))
    return _encoded(source, container.add_stream("aac", rate=rate, layout=layout), offset)


def _copied(source: Any, stream: Any, offset: Fraction) -> Iterator[Any]:
    with source:
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is None:  # marks the end
                continue
            shift = round(offset / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            yield packet


def _encoded(source: Any, stream: Any, offset: Fraction) -> Iterator[Any]:
    with source:
        for frame in source.decode(source.streams.audio[0]):
            frame.pts -= round(offset / frame.time_base)
            yield from stream.encode(frame)
    yield from stream.encode(None)


def _write_gif(images: Iterator[np.ndarray], timing: _Timing, path: Path) -> None:
    frames = timing.frames(images)
    first = next(frames)
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=timing.tick
    )
    # A palette for each frame: one for all would need all frames at hand.
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=GIF_TICKS)
        stream.height, stream.width, stream.pix_fmt = first.height, first.width, "pal8"
        for frame in chain([first], frames):
            shown = round(frame.pts * frame.time_base * GIF_TICKS)
            graph.push(frame)
            indexed: Any = graph.pull()
            indexed.pts, indexed.time_base = shown, Fraction(1, GIF_TICKS)
            container.mux(stream.encode(indexed))
        container.mux(stream.encode())


def _write_folder(images: Iterator[np.ndarray], path: Path) -> None:
    """A folder cannot replace one that is not empty: the old one steps aside for it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    with whole_file(path) as partial:
        partial.mkdir()
        for number, image in enumerate(images, start=1):
            pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
            write_picture(Picture(pixels), partial / _FRAME_NAME.format(number))
        if path.exists():
            os.replace(path, aside)
    remove(aside)
