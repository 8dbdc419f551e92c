"""`csd-nerf translate`: what it writes, refuses, and goes on with."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csd_nerf.cli import main
from csd_nerf.editors import saving
from csd_nerf.media import read_clip, read_picture, write_clip
from csd_nerf.translation import applying
from csd_nerf.translation.model_file import TrainedTranslator, load_translator, save_translator
from csd_nerf.translation.network import LIVELINESS, Translator


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With photos and a translator, and with the signals as before."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(40, 60), (33, 47)]):
        coarse = Image.fromarray(generator.integers(0, 255, (4, 6, 3), np.uint8))
        coarse.resize(size[::-1], Image.Resampling.BICUBIC).save(f"photos/{number}.png")
    torch.manual_seed(0)
    network = Translator(1)
    torch.nn.init.constant_(network.change[0].bias, -0.25 / LIVELINESS)  # darker
    save_translator(TrainedTranslator(network, ("darker",), {}), Path("darker.safetensors"))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def command(*arguments: str) -> int:
    """The exit status."""
    try:
        main(("translate", *arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def train(*more: str, output: str = "night.safetensors") -> int:
    return command(
        *("train", "--data", "photos", "--prior", "tiny-instruct", "--steps", "3", "--size", "32"),
        *("--particles", "2", "--prompt", "make it night", "-o", output, *more),
    )


def darker(before: Path, after: Path) -> bool:
    wanted = (read_picture(before).pixels - 0.25).clamp(min=0)
    return torch.allclose(read_picture(after).pixels, wanted, atol=2 / 255)


def test_training_leaves_a_translator_and_a_page(capsys: Any) -> None:
    assert train("--prompt", "make it autumn") == 0
    translator = load_translator(Path("night.safetensors"))
    assert translator.prompts == ("make it night", "make it autumn")
    said = capsys.readouterr().out
    assert "Train: 3 steps" in said and "night.html" in said
    page = Path("night.html").read_text()
    assert "--prompt &#x27;make it night&#x27;" in page and "translate train --data photos" in page
    assert not Path(".night.safetensors.unfinished").exists()


def test_an_interrupted_training_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert train(output="unbroken.safetensors") == 0
    step = saving.FileObserver.step

    def interrupted(self: Any, steps: int, *rest: Any) -> None:
        step(self, steps, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving.FileObserver, "step", interrupted)
        assert train() == 130
    assert "The same command goes on from there" in capsys.readouterr().out
    assert train("--learning-rate", "0.1") == 2
    assert "another unfinished edit" in capsys.readouterr().err
    assert train() == 0
    assert "from step 1" in capsys.readouterr().out
    assert Path("night.safetensors").read_bytes() == Path("unbroken.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "nowhere"), "there is no folder nowhere"),
        (("--data", "empty"), "empty holds no pictures"),
        (("--prompt", " "), "the prompt is empty"),
        (("--prompt", "make it night"), "--prompt cannot be used"),
        (("-o", "night.pt"), "names no format that can be written"),
        (("-o", "darker.safetensors"), "is already there"),
        (("--size", "30"), "a multiple of 4, such as 32"),
        (("--warm-up", "2"), "--warm-up cannot be used"),
        (("--identity-weight", "-1"), "--identity-weight is too small"),
        (("--method", "dds"), "needs a description of the source"),
        (("--data", "broken"), "cannot be read as a picture"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_message(
    options: tuple[str, ...], said: str, capsys: Any
) -> None:
    os.mkdir("empty")
    os.mkdir("broken")
    Path("broken/0.png").write_bytes(b"no picture")
    assert train(*options) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("Error:") == 1
    assert not Path("night.safetensors").exists()


def test_a_picture_keeps_its_size_and_alpha() -> None:
    Image.fromarray(np.full((23, 31, 4), (200, 100, 150, 90), np.uint8)).save("clear.png")
    assert command("apply", "darker.safetensors", "clear.png", "-o", "out.png") == 0
    assert darker(Path("clear.png"), Path("out.png"))
    alpha = read_picture(Path("out.png")).alpha
    assert alpha is not None and alpha.shape == (1, 23, 31) and abs(alpha.mean() - 90 / 255) < 1e-3


def test_a_folder_goes_on_with_what_is_missing(capsys: Any) -> None:
    assert command("apply", "darker.safetensors", "photos", "-o", "out") == 0
    assert all(darker(Path(f"photos/{n}.png"), Path(f"out/{n}.png")) for n in (0, 1))
    os.remove("out/1.png")
    kept = Path("out/0.png").stat().st_mtime_ns
    assert command("apply", "darker.safetensors", "photos", "-o", "out") == 0
    assert "1 of 2 pictures are there already" in capsys.readouterr().out
    assert Path("out/0.png").stat().st_mtime_ns == kept
    assert darker(Path("photos/1.png"), Path("out/1.png"))


def test_a_clip_becomes_a_clip_or_frames() -> None:
    write_clip((torch.full((3, 20, 30), 0.5 + 0.1 * frame) for frame in range(3)), Path("clip.mp4"))
    assert command("apply", "darker.safetensors", "clip.mp4", "-o", "out.mp4") == 0
    means = [frame.mean().item() for frame in read_clip(Path("out.mp4"))]
    assert means == pytest.approx([0.25, 0.35, 0.45], abs=0.02)
    assert command("apply", "darker.safetensors", "clip.mp4", "-o", "frames") == 0
    assert len(os.listdir("frames")) == 3
    assert not [name for name in os.listdir() if name.endswith(".unfinished")]


def test_an_interrupted_clip_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_clip((torch.full((3, 20, 30), 0.5 + 0.1 * frame) for frame in range(4)), Path("clip.mp4"))
    assert command("apply", "darker.safetensors", "clip.mp4", "-o", "unbroken.mp4") == 0
    translate, done = TrainedTranslator.translate, []

    def translated(self: TrainedTranslator, picture: torch.Tensor, target: int) -> torch.Tensor:
        done.append(picture.mean().item())
        if len(done) == 3:
            raise KeyboardInterrupt
        return translate(self, picture, target)

    monkeypatch.setattr(TrainedTranslator, "translate", translated)
    assert command("apply", "darker.safetensors", "clip.mp4", "-o", "out.mp4") == 130
    assert not Path("out.mp4").exists()
    write_clip((torch.full((3, 20, 30), 0.1) for _ in range(2)), Path("other.mp4"))
    assert command("apply", "darker.safetensors", "other.mp4", "-o", "out.mp4") == 2
    assert "another unfinished translation" in capsys.readouterr().err
    assert command("apply", "darker.safetensors", "clip.mp4", "-o", "out.mp4") == 0
    assert "2 of 4 frames are there already" in capsys.readouterr().out
    assert done == pytest.approx([0.5, 0.6, 0.7, 0.7, 0.8], abs=0.02)
    whole, unbroken = (torch.stack(list(read_clip(Path(name)))) for name in ("out.mp4", "unbroken.mp4"))
    torch.testing.assert_close(whole, unbroken, atol=1.5 / 255, rtol=0)  # weights loaded anew round otherwise
    assert not [name for name in os.listdir() if name.endswith(".unfinished")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.safetensors", "photos/0.png", "-o", "out.png"), "there is no translator"),
        (("other.safetensors", "photos/0.png", "-o", "out.png"), "holds no translator"),
        (("darker.safetensors", "nothing.png", "-o", "out.png"), "there is no picture"),
        (("darker.safetensors", "photos/0.png", "-o", "photos/0.png"), "would replace the source"),
        (("darker.safetensors", "photos/0.png", "-o", "photos/1.png"), "is already there"),
        (("darker.safetensors", "photos", "-o", "out.png"), "cannot take the pictures of a folder"),
        (("darker.safetensors", "photos/0.png", "-o", "out.png", "--prompt", "red"), "no such target"),
    ],
)
def test_what_cannot_be_applied_is_refused_in_one_message(
    arguments: tuple[str, ...], said: str, capsys: Any
) -> None:
    Path("other.safetensors").write_bytes(b"something else")
    assert command("apply", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("Error:") == 1


def test_what_is_half_done_of_a_folder_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = applying.read_picture, []

    def stopping(path: Path) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(path)
        return real(path)

    monkeypatch.setattr(applying, "read_picture", stopping)
    assert command("apply", "darker.safetensors", "photos", "-o", "out") == 130
    assert os.listdir("out") == ["0.png"]
    shutil.rmtree("out")
