"""`csd-nerf video`: what it writes, refuses, and goes on with."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csd_nerf.cli import main
from csd_nerf.editors import saving
from csd_nerf.editors.video_command import Video
from csd_nerf.errors import InputError
from csd_nerf.media import read_clip, write_clip
from csd_nerf.scenes.operators import OPERATORS

FRAMES, HEIGHT, WIDTH = 3, 32, 40


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a clip, and with the signals as before: `main` is made for a process of its own."""
    monkeypatch.chdir(tmp_path)
    x, y = torch.arange(WIDTH) / WIDTH, torch.arange(HEIGHT)[:, None] / HEIGHT
    frames = [torch.stack([x + 0 * y, y + 0 * x, (x + y + t / 9) / 3]) for t in range(FRAMES)]
    write_clip(frames, Path("clip.mp4"), frame_rate=Fraction(30000, 1001))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def command(*arguments: str) -> int:
    """The exit status."""
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def edit(*more: str, source: str = "clip.mp4", output: str = "night.mp4", steps: int = 1) -> int:
    return command(
        *("video", source, "--prior", "tiny-instruct", "--steps", str(steps)),
        *("--prompt", "make it night", "-o", output, *more),
    )


def files() -> list[str]:
    return sorted(os.listdir())


def test_an_edit_leaves_clip_comparison_and_page(capsys: Any) -> None:
    assert edit(steps=6) == 0
    assert files() == ["clip.mp4", "night-comparison.mp4", "night.html", "night.mp4"]
    source, edited = read_clip(Path("clip.mp4")), read_clip(Path("night.mp4"))
    assert (edited.height, edited.width, len(edited)) == (HEIGHT, WIDTH, FRAMES)
    assert edited.frame_rate == source.frame_rate == Fraction(30000, 1001)
    for before, after in zip(source, edited, strict=True):
        night = OPERATORS["night"].apply(before)
        assert (after - night).abs().mean() < 0.5 * (before - night).abs().mean()
    both = read_clip(Path("night-comparison.mp4"))
    assert (both.height, both.width, len(both)) == (2 * HEIGHT + 8, WIDTH, FRAMES)
    printed = capsys.readouterr().out
    assert "[2/3] Edit: 6 steps" in printed and "[3/3] Decode: 3 frames" in printed

    page = Path("night.html").read_text(encoding="utf8")
    assert page.count("data:video/mp4;base64,") == 2
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "csd-nerf video clip.mp4" in page and "3 frames" in page


@pytest.mark.parametrize("output", ["night.gif", "night"])
def test_folders_are_read_and_other_kinds_written(output: str) -> None:
    write_clip(read_clip(Path("clip.mp4")), Path("frames"))
    assert edit("--frame-rate", "10", "--no-page", source="frames", output=output) == 0
    assert files() == sorted(["clip.mp4", "frames", output, "night-comparison.mp4"])
    rate = Fraction(10) if output == "night" else None
    edited = read_clip(Path(output), rate)
    assert len(edited) == FRAMES and edited.frame_rate == 10
    assert read_clip(Path("night-comparison.mp4")).frame_rate == 10


def test_frame_rates_of_television_are_exact() -> None:
    def rate(value: float) -> Fraction | None:
        return Video(input=Path("frames"), output=Path("out.mp4"), frame_rate=value).exact_frame_rate()

    assert rate(29.97) == Fraction(30000, 1001) and rate(23.976) == Fraction(24000, 1001)
    assert rate(25) == 25 and rate(12.5) == Fraction(25, 2) and rate(0.5) == Fraction(1, 2)
    with pytest.raises(InputError, match="--frame-rate"):
        rate(0)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("none.mp4", "-o", "out.mp4"), ["there is no clip none.mp4"]),
        (("text.mp4", "-o", "out.mp4"), ["cannot be read as a clip"]),
        (("cut.mp4", "-o", "out.mp4"), ["cannot be read as a clip"]),
        (("empty", "-o", "out.mp4"), ["holds no frames"]),
        (("sizes", "-o", "out.mp4"), ["differ in size"]),
        (("clip.mp4", "-o", "out.avi"), ["names no format"]),
        (("clip.mp4", "-o", "no/out.mp4"), ["the folder no is not there"]),
        (("clip.mp4", "-o", "clip.mp4", "--force"), ["would replace the source"]),
        (("clip.mp4", "-o", "there.mp4"), ["there.mp4 is already there"]),
        (("clip.mp4", "-o", "sizes", "--force"), ["other things than frames"]),
        (("clip.mp4", "-o", "out.mp4", "--frame-rate", "24"), ["a frame rate of its own"]),
        (("sizes", "-o", "out.mp4", "--frame-rate", "-1"), ["--frame-rate cannot be used"]),
        (("clip.mp4", "-o", "out.mp4", "--keyframe-stride", "0"), ["--keyframe-stride"]),
        (("clip.mp4", "-o", "out.mp4", "--anchors", "16"), ["--anchors", "fewer than the 16"]),
        (("clip.mp4", "-o", "out.mp4", "--method", "dds"), ["--source-prompt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_before_any_work(
    arguments: tuple[str, ...], parts: list[str], capsys: Any
) -> None:
    Path("text.mp4").write_text("not a clip")
    whole = Path("clip.mp4").read_bytes()
    Path("cut.mp4").write_bytes(whole[: len(whole) // 2])
    Path("there.mp4").write_bytes(b"mine")
    Path("empty").mkdir()
    Path("sizes").mkdir()
    Image.new("RGB", (8, 8)).save("sizes/1.png")
    Image.new("RGB", (8, 9)).save("sizes/2.png")
    before = files()
    assert command("video", *arguments, "--prompt", "make it night", "--prior", "tiny-instruct") == 2
    printed = capsys.readouterr()
    for part in ("Error:", "expected:", "got:", "do this:", *parts):
        assert part in printed.err
    assert "Encode" not in printed.out
    assert files() == before and Path("there.mp4").read_bytes() == b"mine"


def test_an_interrupted_edit_goes_on_exactly(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save = saving.Unfinished.save

    def save_and_stop(self: Any, identity: Any, done: int, latents: Any) -> None:
        save(self, identity, done, latents)
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(saving, "SECONDS_BETWEEN_SAVES", 0.0)
        patched.setattr(saving.Unfinished, "save", save_and_stop)
        assert edit("--preview-every", "1", "--no-page", steps=3) == 130
    assert "Stopped after 2 steps" in capsys.readouterr().out
    assert files() == [".night.mp4.unfinished", "clip.mp4", "night-preview.jpg"]
    assert edit("--no-page", "--no-comparison", steps=3) == 0
    assert "from step 2" in capsys.readouterr().out
    assert files() == ["clip.mp4", "night.mp4"]
    assert edit("--no-page", "--no-comparison", steps=3, output="whole.mp4") == 0
    for one, other in zip(read_clip(Path("night.mp4")), read_clip(Path("whole.mp4")), strict=True):
        assert torch.equal(one, other)
