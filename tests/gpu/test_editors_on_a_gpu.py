"""Priors, and what edits pictures and clips by them, on a GPU."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from csd_nerf.cli import main
from csd_nerf.media import read_clip, read_picture, write_clip
from csd_nerf.priors import load_prior

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"
)
SIZE = 64
EDITORS = ("tiny-instruct", "tiny-flow")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With photos and a clip, and with the signals as before: `main` is made for a process of its own."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    Path("photos").mkdir()
    for number in range(8):
        Image.fromarray((255 * landscape(number)).byte().permute(1, 2, 0).numpy()).save(
            f"photos/{number}.png"
        )
    write_clip([landscape(number / 4) for number in range(9)], Path("clip.mp4"), frame_rate=Fraction(12))
    yield
    signal.signal(signal.SIGTERM, handler)


def landscape(place: float) -> torch.Tensor:
    """A picture (3, height, width) of hills under a sky; another place shows other hills."""
    x, y = torch.arange(1.5 * SIZE) / SIZE, torch.arange(SIZE)[:, None] / SIZE
    hills = (y > 0.5 + 0.15 * torch.sin(4 * x + place)).float()
    sky, ground = torch.tensor([0.5, 0.7, 1.0]), torch.tensor([0.3, 0.6, 0.2])
    shade = 0.7 + 0.3 * y + 0 * x
    return shade * (sky[:, None, None] * (1 - hills) + ground[:, None, None] * hills)


@pytest.mark.parametrize("name", ["tiny-instruct", "tiny-sd", "tiny-flow", "tiny-video"])
def test_a_prior_answers_as_on_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 without shortcuts as there; in the precision of a GPU about so."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact = {"dtype": torch.float32, "vae_dtype": torch.float32}
    expected, same, near = (answers(name, *how) for how in (("cpu", exact), ("cuda", exact), ("cuda", {})))
    for right, exactly, nearly in zip(expected, same, near, strict=True):
        torch.testing.assert_close(exactly, right, atol=1e-3, rtol=1e-3)
        assert (nearly - right).norm() < 0.03 * right.norm()


def answers(name: str, device: str, precision: dict[str, torch.dtype]) -> list[torch.Tensor]:
    """Of a prior about some pictures, or a clip: latents, noise in them, and what it decodes."""
    prior = load_prior(name, device=device, clips_too=True, **precision)
    frames = torch.stack([landscape(number / 4)[:, :, :SIZE] for number in range(8)]).to(device)
    pictures = frames.movedim(1, 0)[None] if name == "tiny-video" else frames
    with torch.no_grad():
        latents, condition = prior.encode_source(pictures)
        text = prior.embed(["make it night"] * len(latents), condition)
        t = prior.schedule.num_timesteps * 2 // 5
        noise = prior.predict_noise(0.7 * latents + 0.7, t, text, condition)
        return [answer.float().cpu() for answer in (latents, noise, prior.decode(latents))]


@pytest.mark.parametrize("prior", EDITORS)
def test_a_picture_becomes_what_it_becomes_on_a_cpu(prior: str) -> None:
    edit = ("image", "photos/0.png", "--prior", prior, "--prompt", "make it night", "--seed", "1")
    exact = ("--precision", "float32", "--vae-precision", "float32")
    main((*edit, *exact, "--device", "cpu", "-o", "expected.png"))
    main((*edit, *exact, "--device", "cuda", "-o", "exact.png"))
    main((*edit, "--device", "cuda", "-o", "half.png"))
    names = ("photos/0.png", "expected.png", "exact.png", "half.png")
    before, right, exactly, nearly = (read_picture(Path(name)).pixels for name in names)
    assert right.mean() < before.mean() - 0.1
    assert (exactly - right).abs().mean() < 0.005
    assert (nearly - right).abs().mean() < 0.03


def test_a_compiled_unet_says_the_same() -> None:
    frames = torch.stack([landscape(number)[:, :, :SIZE] for number in range(2)]).cuda()
    answers = []
    for compiled in (False, True):
        prior = load_prior("tiny-instruct", device="cuda", compile_unet=compiled)
        latents, condition = prior.encode_source(frames)
        answers.append(prior.predict_noise(latents, 300, prior.embed(["make it night"] * 2), condition))
    assert (answers[0] - answers[1]).float().norm() < 0.01 * answers[0].float().norm()


@pytest.mark.parametrize("prior", [*EDITORS, "tiny-video"])
def test_a_clip(prior: str) -> None:
    edit = ("video", "clip.mp4", "--prior", prior, "--prompt", "make it night")
    main((*edit, "--steps", "3", "-o", "night.mp4"))
    before, after = (torch.stack(list(read_clip(Path(name)))) for name in ("clip.mp4", "night.mp4"))
    assert after.shape == before.shape and after.mean() < before.mean() - 0.05


def test_a_panorama_of_two_windows() -> None:
    edit = ("panorama", "photos/0.png", "--prior", "tiny-instruct", "--prompt", "make it winter")
    main((*edit, "--window-size", "64", "--steps", "3", "-o", "winter.png"))
    assert read_picture(Path("winter.png")).pixels.shape == read_picture(Path("photos/0.png")).pixels.shape


def test_a_translator() -> None:
    train = ("translate", "train", "--data", "photos", "--prior", "tiny-instruct")
    asked = ("--prompt", "make it night", "--steps", "20", "--size", "64")
    main((*train, *asked, "-o", "night.safetensors"))
    main(("translate", "apply", "night.safetensors", "photos/0.png", "-o", "night.png"))
    before, after = (read_picture(Path(name)).pixels for name in ("photos/0.png", "night.png"))
    assert after.mean() < before.mean() - 0.02


def test_a_probe() -> None:
    probe = ("probe", "--data", "photos", "--prior", "tiny-instruct", "--prompt", "make it night")
    main((*probe, "--size", "64", "--steps", "3", "-o", "night.html"))
    assert Path("night.html").exists()
