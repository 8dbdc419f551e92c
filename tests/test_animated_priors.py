"""Priors for clips, with layers of motion, against diffusers' pipeline and the priors for pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prior_folders import (
    check_that_a_missing_part_is_named,
    edit_json,
    save_animate_diff,
)

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import Guidance, Objective, ObjectiveConfig, preset
from csd_nerf.distillation.objective import draw_noise
from csd_nerf.distillation.residuals import guided_noise
from csd_nerf.distillation.structure import StructureConfig
from csd_nerf.errors import InputError
from csd_nerf.priors import ControlConfig, Prior, check_control, check_motion, check_prior, load_prior
from csd_nerf.priors.elsewhere import Elsewhere
from csd_nerf.priors.folder import is_for_clips, is_image_conditioned
from csd_nerf.scenes.operators import OPERATORS

PROMPT, SOURCE_PROMPT = "a sketch of a bear", "a photo of a bear"
T = 600
FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "vae_dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(text_to_image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_animate_diff(tmp_path_factory.mktemp("priors") / "animated", text_to_image_folder)


@pytest.fixture(scope="module")
def prior(folder: Path) -> Prior:
    return load_prior(str(folder), clips_too=True, **FLOAT32)


@pytest.fixture(scope="module")
def instructed(motion: dict[str, str]) -> Prior:
    return load_prior("tiny-instruct", motion=motion["moving"], clips_too=True, **FLOAT32)


@pytest.fixture
def clips(generator: torch.Generator) -> torch.Tensor:
    """Two of five frames, wider than high: a transposed place would show."""
    return torch.rand(2, 3, 5, 32, 48, generator=generator)


def test_one_step_equals_the_pipelines(folder: Path, prior: Any, generator: torch.Generator) -> None:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    pipeline = AnimateDiffPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, prior.latent_channels, 5, 8, 12, generator=generator)
    options = {"height": 32, "width": 48, "num_frames": 5, "latents": start, "guidance_scale": 7.5}
    theirs = pipeline(PROMPT, num_inference_steps=1, output_type="latent", **options).frames
    t = int(pipeline.scheduler.timesteps[0])
    shown = prior.condition(torch.rand(1, 3, 5, 32, 48))
    text, empty = prior.embed([PROMPT]), prior.embed([""])
    (noise,) = guided_noise(prior, t, empty, shown, Guidance(7.5), (start, text))
    ours = pipeline.scheduler.step(noise, t, start).prev_sample
    assert (theirs - start).abs().mean() > 0.01  # it was a step
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    decoded = pipeline.decode_latents(theirs) / 2 + 0.5
    torch.testing.assert_close(prior.decode(ours), decoded.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_layers_that_add_nothing_leave_the_prior_for_pictures(
    tiny_prior: Prior, motion: dict[str, str], clips: torch.Tensor, generator: torch.Generator
) -> None:
    """Frame by frame: latents, what is shown, noise, and pictures."""
    quiet = load_prior("tiny-instruct", motion=motion["quiet"], clips_too=True, **FLOAT32)
    frames = clips.transpose(1, 2).flatten(0, 1)

    def of_clips(pictures: torch.Tensor) -> torch.Tensor:
        return pictures.unflatten(0, (2, 5)).transpose(1, 2)

    for ours, theirs in zip(quiet.encode_source(clips), tiny_prior.encode_source(frames), strict=True):
        torch.testing.assert_close(ours, of_clips(theirs))
    latents, condition = tiny_prior.encode_source(frames)
    noisy = latents + torch.randn(latents.shape, generator=generator)
    text = tiny_prior.embed(["make it night"])
    torch.testing.assert_close(
        quiet.predict_noise(of_clips(noisy), T, text.expand(2, -1, -1), of_clips(condition)),
        of_clips(tiny_prior.predict_noise(noisy, T, text.expand(10, -1, -1), condition)),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(quiet.decode(of_clips(latents)), of_clips(tiny_prior.decode(latents)))


def test_frames_see_each_other_and_clips_do_not(
    instructed: Prior, clips: torch.Tensor, generator: torch.Generator
) -> None:
    latents, condition = instructed.encode_source(clips)
    noisy = torch.randn(latents.shape, generator=generator)
    text = instructed.embed(["make it night"]).expand(2, -1, -1)
    before = instructed.predict_noise(noisy, T, text, condition)
    changed = noisy.clone()
    changed[0, :, 4] += 1
    after = instructed.predict_noise(changed, T, text, condition)
    assert (after - before)[0, :, 0].abs().max() > 1e-3
    torch.testing.assert_close(after[1], before[1])


@pytest.mark.parametrize("method", ["dds", "sds"])
def test_methods_for_descriptions_ask_it(
    prior: Prior, clips: torch.Tensor, generator: torch.Generator, method: str
) -> None:
    source, condition = prior.encode_source(clips)
    assert source.shape == (2, prior.latent_channels, 5, 8, 12) and condition.shape == (2, 0, 5, 8, 12)
    config = preset(method)
    config.transport = "svgd"
    step = Objective(config, Elsewhere(prior, torch.device("cpu"))).gradient(
        source, source, condition, prompt=PROMPT, source_prompt=SOURCE_PROMPT, generator=generator
    )
    assert step.gradient.shape == source.shape and step.gradient.isfinite().all()
    assert step.gradient.abs().max() > 0 and 0 < step.statistics["kernel_offdiagonal_mean"] < 1
    assert step.statistics["unet_evaluations"] == {"dds": 8, "sds": 4}[method]


@pytest.mark.parametrize(
    ("method", "distance"),
    [("csd-edit", "latents"), ("csd-edit", "colours"), ("dreamcatalyst", "latents"), ("ssd", "latents")],
)
def test_methods_for_instructions_ask_it(
    instructed: Prior, clips: torch.Tensor, generator: torch.Generator, method: Any, distance: Any
) -> None:
    config = ObjectiveConfig(residual=method, distance=distance)
    source, condition = instructed.encode_source(clips)
    step = Objective(config, instructed).gradient(
        source, source, condition, prompt="make it night", generator=generator
    )
    assert step.gradient.shape == source.shape and step.gradient.isfinite().all()
    assert step.gradient.abs().max() > 0


def test_micro_batches_count_the_frames(
    instructed: Any, clips: torch.Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = torch.randn(2, instructed.latent_channels, 5, 8, 12, generator=generator)
    text = instructed.embed(["make it night"]).expand(2, -1, -1)
    together = instructed.predict_noise(noisy, T, text, None)
    seen = []
    instructed.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    monkeypatch.setattr(instructed, "unet_batch_size", 9)
    torch.testing.assert_close(instructed.predict_noise(noisy, T, text, None), together, rtol=1e-4, atol=1e-5)
    assert seen == [(1, 2 * instructed.latent_channels, 5, 8, 12)] * 2


def test_what_the_folder_says_is_what_the_prior_says(
    folder: Path, prior: Prior, instructed: Prior, tiny_prior: Prior
) -> None:
    assert is_for_clips(folder) and not is_image_conditioned(folder) and not prior.image_conditioned
    assert not is_for_clips(bundled_path("tiny-instruct")) and tiny_prior.clip_frames == 0
    assert instructed.image_conditioned and instructed.guided_by == "picture-and-text"
    assert prior.clip_frames == instructed.clip_frames == prior.most_frames == 8 and prior.frame_factor == 1


def test_pictures_and_clips_are_not_confused(
    folder: Path, prior: Prior, tiny_prior: Prior, clips: torch.Tensor
) -> None:
    with pytest.raises(InputError, match="prior is one for clips(.|\n)*n, channels, frames"):
        prior.encode(clips[:, :, 0])
    with pytest.raises(InputError, match="prior is one for pictures"):
        tiny_prior.encode(clips)
    for refused in (check_prior, lambda name: load_prior(name, device="cpu")):
        with pytest.raises(
            InputError, match="one for clips, and here pictures are edited(.|\n)*csd-nerf video"
        ):
            refused(str(folder))
    check_prior(str(folder), clips_too=True)


def test_what_cannot_be_used_is_refused(
    folder: Path,
    prior: Prior,
    motion: dict[str, str],
    control_net_folder: Path,
    tmp_path: Path,
    generator: torch.Generator,
) -> None:
    long = torch.randn(1, prior.latent_channels, 9, 8, 12, generator=generator)
    with pytest.raises(InputError, match="cannot see so long a clip at once(.|\n)*8 frames at most"):
        prior.predict_noise(long, T, prior.embed([""]), None)
    config = preset("dds")
    config.structure = StructureConfig(loss="cut")
    with pytest.raises(InputError, match="structure loss"):
        Objective(config, prior)
    with pytest.raises(InputError, match="beside a prior for clips"):
        check_control(ControlConfig(str(control_net_folder), "depth"), folder)
    check_motion(motion["moving"], bundled_path("tiny-instruct"))
    with pytest.raises(InputError, match="has such layers already"):
        check_motion(motion["moving"], folder)
    with pytest.raises(InputError, match="no such motion adapter"):
        check_motion("nowhere", None)
    with pytest.raises(InputError, match="holds no layers of motion(.|\n)*no config.json"):
        check_motion(str(folder), None)
    other = shutil.copytree(motion["moving"], tmp_path / "other")
    edit_json(other / "config.json", block_out_channels=[16, 32, 48])
    with pytest.raises(InputError, match=r"another U-Net(.|\n)*block_out_channels \[48, 96, 128\]"):
        check_motion(str(other), bundled_path("tiny-instruct"))
    (other / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="motion adapter in .* is missing parts"):
        check_motion(str(other), None)
    check_that_a_missing_part_is_named(shutil.copytree(folder, tmp_path / "part"), "unet/config.json")


@torch.no_grad()
def test_an_edit_of_a_clip_reaches_its_target(motion: dict[str, str], generator: torch.Generator) -> None:
    """With layers that add nothing the bundled prior's night comes out, so signs and scales are right."""
    from csd_nerf.distillation import DescentConfig, edit_latents

    quiet = load_prior("tiny-instruct", motion=motion["quiet"], clips_too=True, **FLOAT32)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)
    clip = picture[:, :, None].expand(-1, -1, 3, -1, -1)
    config = preset("csd-edit")
    config.text_guidance, config.max_timestep = 3.5, 0.6
    source, condition = quiet.encode_source(clip)
    edited = edit_latents(
        Objective(config, quiet),
        source,
        source,
        condition,
        prompt="make it night",
        descent=DescentConfig(steps=8, learning_rate=1.0),
        generator=generator,
    )
    night = OPERATORS["night"].apply(picture[0])[None, :, None]
    assert (quiet.decode(edited) - night).abs().mean() < 0.5 * (clip - night).abs().mean()


def test_noise_is_shared_by_clips_or_by_all_their_frames(clips: torch.Tensor) -> None:
    def drawn(sharing: Any) -> torch.Tensor:
        return draw_noise(clips, sharing, torch.Generator().manual_seed(0))

    def distinct(noise: torch.Tensor) -> int:
        return len(noise.transpose(1, 2).flatten(0, 1).flatten(1).unique(dim=0))

    assert [distinct(drawn(sharing)) for sharing in ("per-particle", "shared", "still")] == [10, 5, 1]
    assert torch.equal(drawn("shared")[0], drawn("shared")[1])
    assert all(drawn(sharing).shape == clips.shape for sharing in ("per-particle", "shared", "still"))
