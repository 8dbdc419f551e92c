"""`edit_video` and `csd-nerf video` with priors for clips: stretches of the clip are the particles."""

from __future__ import annotations

import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from prior_folders import save_wan

from csd_nerf.cli import main
from csd_nerf.editors import PictureSettings, VideoSettings, edit_image, edit_video
from csd_nerf.editors.clip_canvas import ClipCanvas
from csd_nerf.editors.loop import descend
from csd_nerf.editors.observer import Observer
from csd_nerf.errors import InputError
from csd_nerf.media import read_clip, write_clip
from csd_nerf.priors import Prior, load_prior
from csd_nerf.seeds import step_seed

FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "vae_dtype": torch.float32}
PROMPT = "make it night"


@pytest.fixture(scope="module")
def moving(motion: dict[str, str]) -> Prior:
    return load_prior("tiny-instruct", motion=motion["moving"], clips_too=True, **FLOAT32)


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("priors") / "wan", pipeline="LucyEditPipeline")


def settings(**changes: Any) -> VideoSettings:
    fast = {"prior": "tiny-instruct", "steps": 2, "size": 32, "precision": "float32", "device": "cpu"}
    return VideoSettings(**{**fast, **changes})


def clip(count: int, height: int = 32, width: int = 40) -> torch.Tensor:
    """Soft waves that move, (F, 3, H, W)."""
    x = torch.arange(width) / width
    waves = [torch.sin(2 * torch.pi * (x + 0.02 * t + k / 3)) for t in range(count) for k in range(3)]
    return (0.5 + 0.4 * torch.stack(waves)).view(count, 3, 1, width).expand(-1, -1, height, -1)


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 40, 200])
def test_every_frame_moves_once_in_each_step(frames: int, generator: torch.Generator) -> None:
    latents = torch.arange(frames).float().view(1, 1, -1, 1, 1)
    canvas = ClipCanvas(latents.clone(), latents, latents[:, :0], PROMPT, window=8, particles=4)
    firsts = set()
    for _ in range(3):
        change = torch.zeros_like(canvas.latents)
        for batch in canvas.batches(generator):
            assert len(batch.places) <= 4
            particles = canvas.gather(batch)
            assert particles.condition.shape == (len(batch.places), 0, min(frames, 8), 1, 1)
            assert (particles.latents.diff(dim=2) == 1).all()  # neighbours
            firsts.update(particles.latents[:, 0, 0].flatten().tolist())
            canvas.scatter(batch, torch.ones_like(particles.latents), change)
        torch.testing.assert_close(change, torch.ones_like(change))
    assert frames < 40 or len(firsts) > frames // 8  # bounds that slide


def test_a_clip_that_the_prior_sees_at_once_is_edited_as_one(moving: Prior) -> None:
    """Exactly as `edit_latents` does without any canvas."""
    chosen = settings(steps=2)
    source, condition = moving.encode_source(clip(8).transpose(0, 1)[None])
    objective, descent = chosen.objective(moving), chosen.descent()
    canvas = ClipCanvas(source.clone(), source, condition, PROMPT, window=8, particles=16)
    for _ in descend(canvas, objective, descent, seed=3):
        pass
    latents = source
    for step in range(2):
        generator = torch.Generator().manual_seed(step_seed(3, step))
        timestep = objective.draw_timestep(step=step, max_steps=2, generator=generator)
        torch.rand((), generator=generator)  # where stretches would begin, and their order
        torch.randperm(1, generator=generator)
        distilled = objective.gradient(
            latents, source, condition, prompt=PROMPT, timestep=timestep, generator=generator
        )
        latents = latents - descent.rate(step) * distilled.gradient
    assert (latents - source).abs().max() > 0.1
    torch.testing.assert_close(canvas.latents, latents)


def test_layers_that_add_nothing_edit_frame_by_frame(
    motion: dict[str, str], tiny_prior: Prior, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose frames are independent particles of the prior for pictures, with the same noise."""
    quiet = load_prior("tiny-instruct", motion=motion["quiet"], clips_too=True, **FLOAT32)
    chosen = settings(transport="independent", noise="per-particle")
    frames = clip(6)
    source, condition = tiny_prior.encode_source(frames)

    def of_clip(pictures: torch.Tensor) -> torch.Tensor:
        return pictures.transpose(0, 1)[None]

    noise = torch.randn(source.shape, generator=generator)
    answers = {}
    for name, prior, form in (("pictures", tiny_prior, lambda x: x), ("clip", quiet, of_clip)):
        objective = chosen.objective(prior)
        monkeypatch.setattr("csd_nerf.distillation.objective.draw_noise", lambda *_, form=form: form(noise))
        answers[name] = objective.gradient(
            form(source), form(source), form(condition), prompt=PROMPT, timestep=300
        ).gradient
    assert answers["clip"].abs().max() > 0.1
    torch.testing.assert_close(answers["clip"], of_clip(answers["pictures"]), rtol=1e-4, atol=1e-4)


def test_long_clips_are_edited_in_stretches_that_agree(moving: Prior) -> None:
    told: list[tuple[int, ...]] = []
    asked = moving.predict_noise
    try:
        moving.predict_noise = lambda noisy, *more: told.append(tuple(noisy.shape)) or asked(noisy, *more)  # type: ignore[method-assign,func-returns-value]
        edited = edit_video(clip(19), PROMPT, settings(steps=1), loaded=moving)
    finally:
        del moving.predict_noise  # type: ignore[method-assign]
    assert edited.shape == (19, 3, 32, 40) and (edited - clip(19)).abs().mean() > 0.01
    # Four stretches of eight frames, all branches of guidance.
    assert told == [(5 * 4, moving.latent_channels, 8, 8, 10)]


def test_a_shorter_stretch_and_one_frame(motion: dict[str, str], moving: Prior) -> None:
    assert edit_video(
        clip(5), PROMPT, settings(steps=1, clip_frames=4, motion=motion["moving"]), loaded=moving
    ).shape == (
        5,
        3,
        32,
        40,
    )
    assert edit_video(clip(1), PROMPT, settings(steps=1), loaded=moving).shape == (1, 3, 32, 40)


@pytest.mark.parametrize("frames", [1, 5, 7, 14])
def test_lengths_that_the_autoencoder_does_not_know(wan_folder: Path, frames: int) -> None:
    chosen = settings(prior=str(wan_folder), steps=1, clip_frames=9)
    seen: list[torch.Tensor] = []

    class Watching(Observer):
        def step(self, steps: int, latents: torch.Tensor, draw: Any) -> None:
            seen.append(draw())

    edited = edit_video(clip(frames), PROMPT, chosen, observer=Watching())
    assert edited.shape == (frames, 3, 32, 40) and edited.isfinite().all()
    assert seen[0].shape == (3, 32, 40 * min(frames, 4))


def test_the_command_edits_goes_on_and_refuses(
    motion: dict[str, str], wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(clip(10), Path("clip.mp4"), frame_rate=Fraction(24))
    handler = signal.getsignal(signal.SIGTERM)

    def edit(*more: str, output: str = "out.mp4") -> int:
        arguments = ["video", "clip.mp4", "--prompt", PROMPT, "-o", output, "--device", "cpu"]
        try:
            main([*arguments, "--size", "32", "--no-page", "--no-comparison", *more])
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
        return 0

    by_motion = ("--prior", "tiny-instruct", "--motion", motion["moving"])
    assert edit(*by_motion, "--steps", "2") == 0
    assert len(read_clip(Path("out.mp4"))) == 10
    capsys.readouterr()
    for options, words in (
        ((*by_motion, "--anchors", "2"), "--anchors"),
        ((*by_motion, "--keyframe-stride", "2"), "--keyframe-stride"),
        ((*by_motion, "--clip-frames", "9"), "8 at most"),
        (("--prior", "tiny-instruct", "--clip-frames", "8"), "with a prior for pictures"),
        (("--prior", str(wan_folder), "--clip-frames", "8"), "multiple of 4 and one more, such as 9"),
        (("--prior", str(wan_folder), "--motion", motion["moving"]), "no layers of motion"),
        (("--prior", "tiny-instruct", "--motion", "nowhere"), "no such motion adapter"),
    ):
        assert edit(*options, "--steps", "1", output="refused.mp4") == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said and said.count("do this:") == 1
    assert not Path("refused.mp4").exists()


def test_pictures_are_not_edited_by_a_prior_for_clips(wan_folder: Path) -> None:
    with pytest.raises(InputError, match="one for clips, and here pictures are edited"):
        edit_image(torch.rand(3, 32, 32), PROMPT, PictureSettings(prior=str(wan_folder), steps=1))
