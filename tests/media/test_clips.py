"""Clips: every frame with its time and sound, whatever the container; written whole or not at all."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from csd_nerf.errors import InputError
from csd_nerf.media import Clip, check_clip_output, read_clip, write_clip

COLORS = ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 0), (0.2, 0.6, 0.9))


def flat(height: int = 48, width: int = 64, count: int = 6) -> torch.Tensor:
    """Frames of a colour each, (F, 3, H, W)."""
    colors = torch.tensor(COLORS)[torch.arange(count) % len(COLORS)]
    return colors[..., None, None].expand(count, 3, height, width)


def with_sound(path: Path, codec: str = "aac", format: str = "mp4", seconds: float = 0.5) -> None:
    """Rewrite a clip with a tone, into the container that the ending of the path says."""
    source = path.with_name(f"silent-{path.name}.mp4")
    write_clip(flat(count=int(seconds * 12)), source, frame_rate=Fraction(12))
    with av.open(str(source)) as silent, av.open(str(path), "w", format=format) as container:
        video = container.add_stream_from_template(silent.streams.video[0])
        tone = container.add_stream(codec, rate=48000, layout="mono")
        samples = np.sin(np.arange(int(48000 * seconds)) * 0.05).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for packet in silent.demux(silent.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                container.mux(packet)
        container.mux(tone.encode(frame))
        container.mux(tone.encode(None))


def tone(path: Path) -> tuple[str, np.ndarray]:
    """Codec and samples of a clip's sound."""
    with av.open(str(path)) as container:
        heard = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(heard)])
        return heard.codec_context.codec.canonical_name, samples


@pytest.mark.parametrize(("name", "closest"), [("clip.mp4", 0.02), ("clip.gif", 0.01), ("frames", 0.002)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_frames_come_back(name: str, closest: float, count: int, tmp_path: Path) -> None:
    frames = flat(count=count)
    write_clip(frames, tmp_path / name, frame_rate=Fraction(10))
    clip = read_clip(tmp_path / name)
    assert (len(clip), clip.height, clip.width) == (count, 48, 64)
    for read, written in zip(clip, frames, strict=True):
        assert (read - written).abs().max() < closest
    assert len(list(clip)) == count  # a second time
    assert not clip.audio


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(7, 2)])
def test_frame_rate_is_kept_exactly(rate: Fraction, tmp_path: Path) -> None:
    write_clip(flat(), tmp_path / "one.mp4", frame_rate=rate)
    first = read_clip(tmp_path / "one.mp4")
    assert first.frame_rate == rate
    write_clip(first, tmp_path / "two.mp4", like=first)
    assert read_clip(tmp_path / "two.mp4").frame_rate == rate
    write_clip(first, tmp_path / "three.gif", like=first)
    assert float(read_clip(tmp_path / "three.gif").frame_rate) == pytest.approx(float(rate), rel=0.02)


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_uneven_times_are_kept(name: str, tmp_path: Path) -> None:
    durations = [100, 300, 50, 50, 400, 100]
    images = [Image.fromarray((f.permute(1, 2, 0) * 255).byte().numpy()) for f in flat()]
    images[0].save(tmp_path / "in.gif", save_all=True, append_images=images[1:], duration=durations)
    clip = read_clip(tmp_path / "in.gif")
    expected = tuple(Fraction(time, 1000) for time in (0, 100, 400, 450, 500, 900))
    assert clip.times == expected
    write_clip(clip, tmp_path / name, like=clip)
    assert read_clip(tmp_path / name).times == expected


def test_odd_sides_grow_by_a_pixel_in_mp4_only(tmp_path: Path) -> None:
    frames = torch.rand(2, 3, 17, 31)
    for name, size in (("clip.mp4", (18, 32)), ("clip.gif", (17, 31)), ("frames", (17, 31))):
        write_clip(frames, tmp_path / name)
        clip = read_clip(tmp_path / name)
        assert (clip.height, clip.width) == size


def test_sound_is_copied_bit_for_bit(tmp_path: Path) -> None:
    with_sound(tmp_path / "in.mp4")
    clip = read_clip(tmp_path / "in.mp4")
    assert clip.audio
    write_clip(clip, tmp_path / "out.mp4", like=clip)
    assert read_clip(tmp_path / "out.mp4").audio
    assert read_clip(tmp_path / "out.mp4").frame_rate == clip.frame_rate
    (codec, before), (_, after) = tone(tmp_path / "in.mp4"), tone(tmp_path / "out.mp4")
    assert codec == "aac" and np.array_equal(before, after)


def test_sound_that_mp4_does_not_know_is_encoded_anew(tmp_path: Path) -> None:
    with_sound(tmp_path / "in.mkv", codec="pcm_s16le", format="matroska")
    clip = read_clip(tmp_path / "in.mkv")
    write_clip(clip, tmp_path / "out.mp4", like=clip)
    (_, before), (codec, after) = tone(tmp_path / "in.mkv"), tone(tmp_path / "out.mp4")
    assert codec == "aac"
    length = len(before)
    likeness = np.corrcoef(before / 32768, after[:length])[0, 1]
    assert likeness > 0.99  # also says that it starts when it should


def test_a_clip_that_begins_late_keeps_picture_and_sound_together(tmp_path: Path) -> None:
    with_sound(tmp_path / "in.mp4")
    late = 2  # seconds, as a recording of a broadcast would
    with av.open(str(tmp_path / "in.mp4")) as source, av.open(str(tmp_path / "in.ts"), "w") as container:
        streams = {s.index: container.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                ticks = round(late / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    clip = read_clip(tmp_path / "in.ts")
    write_clip(clip, tmp_path / "out.mp4", like=clip)

    def starts(path: Path) -> list[float]:
        times = []
        for kind in ("video", "audio"):
            with av.open(str(path)) as container:
                times.append(next(container.decode(getattr(container.streams, kind)[0])).time)
        return times

    before, after = starts(tmp_path / "in.ts"), starts(tmp_path / "out.mp4")
    assert min(before) > 1.9 and max(after) < 0.2
    assert after[0] - after[1] == pytest.approx(before[0] - before[1], abs=0.001)


def test_rotation_is_applied(tmp_path: Path) -> None:
    frame = torch.zeros(1, 3, 32, 64)
    frame[..., 0, :16, :] = 1  # red on top
    write_clip(frame, tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    header = data.index(b"tkhd")  # the movie's own matrix stands before it
    place = data.index(upright, header)
    (tmp_path / "turned.mp4").write_bytes(data[:place] + clockwise + data[place + 36 :])
    clip = read_clip(tmp_path / "turned.mp4")
    assert (clip.height, clip.width) == (64, 32)
    picture = next(iter(clip))
    assert picture.shape == (3, 64, 32)
    assert picture[0, :, 20:].min() > 0.9 and picture[0, :, :12].max() < 0.1  # red on the right


def test_frames_of_a_folder_are_taken_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (10, 9, 2, 1):
        Image.new("L", (8, 8), number).save(folder / f"shot{number}.png")
    (folder / "notes.txt").touch()
    clip = read_clip(folder, Fraction(10))
    assert [round(frame[0, 0, 0].item() * 255) for frame in clip] == [1, 2, 9, 10]
    assert clip.frame_rate == 10


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    noise = torch.rand(12, 3, 64, 64)
    write_clip(noise, tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "head.mp4").write_bytes(whole[:100])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a clip")
    (tmp_path / "folder").mkdir()
    (tmp_path / "sizes").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sizes/1.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "sizes/2.png")
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "whole.mkv"), "w") as other:
        stream = other.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                other.mux(packet)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    for name, part in (
        ("cut.mp4", "truncated"),
        ("cut.mkv", "truncated"),
        ("head.mp4", "without moving pictures"),
        ("empty.mp4", "an empty file"),
        ("text.mp4", "damaged"),
        ("missing.mp4", "no such file"),
        ("folder", "holds no frames"),
        ("sizes", "one of 8 x 9"),
    ):
        with pytest.raises(InputError, match=part):
            read_clip(tmp_path / name)
    with pytest.raises(InputError, match="--frame-rate"):
        read_clip(tmp_path / "whole.mp4", Fraction(10))
    with pytest.raises(InputError, match="no frames"):
        write_clip([], tmp_path / "none.mp4")


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "tone.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="without moving pictures"):
        read_clip(tmp_path / "tone.wav")


def test_output_is_checked_before_work(tmp_path: Path) -> None:
    write_clip(flat(), tmp_path / "frames")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    (tmp_path / "there.mp4").touch()
    for name, force, part in (
        ("frames", False, "--force"),
        ("there.mp4", False, "--force"),
        ("mine", True, "thesis.tex"),
        ("clip.avi", False, ".avi"),
        ("nowhere/clip.mp4", False, "no such folder"),
    ):
        with pytest.raises(InputError, match=part):
            check_clip_output(tmp_path / name, force=force)
    check_clip_output(tmp_path / "frames", force=True)
    check_clip_output(tmp_path / "there.mp4", force=True)
    write_clip(flat(count=2), tmp_path / "frames", force=True)
    assert len(read_clip(tmp_path / "frames")) == 2
    assert sorted(os.listdir(tmp_path)) == ["frames", "mine", "there.mp4"]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_what_goes_wrong_leaves_the_old_clip(
    name: str, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    def cut_short() -> object:
        yield torch.rand(3, 64, 64)
        raise KeyboardInterrupt

    path = tmp_path / name
    write_clip(flat(), path)

    def colors(clip: Clip) -> list[list[int]]:
        return [(frame.mean((1, 2)) * 20).round().tolist() for frame in clip]

    before = colors(read_clip(path))
    noise = torch.rand(2, 3, 256, 256)
    with full_disk(20000), pytest.raises(InputError, match="cannot be written"):
        write_clip(noise, path, force=True)
    with pytest.raises(KeyboardInterrupt):
        write_clip(cut_short(), path, force=True)  # type: ignore[arg-type]
    assert colors(read_clip(path)) == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("rate", [192_000, 4_000, 37_800])
def test_sound_of_a_rate_that_aac_lacks_is_resampled(rate: int, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for index in range(12):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            picture.pts = index
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        wave = np.sin(np.arange(rate // 2) / rate * 2 * np.pi * 440) * 20000
        sound = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        sound.rate, sound.pts = rate, 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    clip = read_clip(tmp_path / "in.mkv")
    write_clip(clip, tmp_path / "out.mp4", like=clip)
    with av.open(str(tmp_path / "out.mp4")) as container:
        heard = sum(frame.samples / frame.rate for frame in container.decode(audio=0))
    assert heard == pytest.approx(0.5, abs=0.3)


def deep(path: Path, codes: np.ndarray, transfer: int) -> None:
    """A lossless clip of one frame with 16-bit RGB numbers, which says how they are to be seen."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(12))
        stream.height, stream.width = codes.shape[:2]
        stream.pix_fmt = "gbrp16le"
        stream.codec_context.color_trc = transfer
        frame = av.VideoFrame.from_ndarray(codes, format="rgb48le").reformat(format=stream.pix_fmt)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def anamorphic(path: Path, ratio: str) -> None:
    """A clip of 144 x 116 pixels that are wider than high by `ratio`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12), options={"aspect": ratio})
        stream.height, stream.width, stream.pix_fmt = 116, 144, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((116, 144, 3), 90, np.uint8), format="rgb24")
        frame.pts = 0
        container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("64/45", (116, 205)), ("1/2", (232, 144)), ("1/1", (116, 144)), ("8/1", (116, 144))],
)
def test_pixels_become_square(ratio: str, size: tuple[int, int], tmp_path: Path) -> None:
    anamorphic(tmp_path / "clip.mp4", ratio)
    clip = read_clip(tmp_path / "clip.mp4")
    assert (clip.height, clip.width) == size
    assert {tuple(frame.shape) for frame in clip} == {(3, *size)}


@pytest.mark.parametrize(
    ("transfer", "signal", "seen"),
    [
        (16, 0.0, 0.0),
        (16, 0.5, (92.25 / 203) ** (1 / 2.4)),  # BT.2408's table: 50 % PQ is 92 cd/m2
        (16, 1.0, 1.0),
        (18, 0.75, (0.8 + 0.2 * (1 - np.exp(-1.0))) ** (1 / 2.4)),  # 75 % HLG is 203 cd/m2, diffuse white
        (18, 0.38, (26 / 203) ** (1 / 2.4)),  # an 18 % grey card: 26 cd/m2
        (1, 0.5, 0.5),
    ],
)
def test_high_dynamic_range_is_tone_mapped(transfer: int, signal: float, seen: float, tmp_path: Path) -> None:
    codes = np.full((16, 16, 3), round(signal * 65535), np.uint16)
    deep(tmp_path / "clip.mkv", codes, transfer)
    (frame,) = read_clip(tmp_path / "clip.mkv")
    assert torch.allclose(frame, torch.tensor(seen, dtype=torch.float32), atol=0.012)
