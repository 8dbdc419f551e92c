"""Wan and Lucy Edit, models of flow matching for clips, as priors: small ones, untrained."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from prior_folders import check_that_a_missing_part_is_named, edit_json, save_wan

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import Guidance, Objective, ddim_step, preset
from csd_nerf.distillation.residuals import guided_noise
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior, check_motion, check_prior, load_prior
from csd_nerf.priors.elsewhere import Elsewhere
from csd_nerf.priors.folder import guided_by, is_for_clips, is_image_conditioned, vae_factor

PROMPT, SOURCE_PROMPT = "a bear at night", "a bear"
T = 600


@pytest.fixture(scope="module", params=["WanPipeline", "LucyEditPipeline"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = save_wan(tmp_path_factory.mktemp("priors") / "wan", pipeline=request.param)
    prior = load_prior(
        str(folder), clips_too=True, device="cpu", dtype=torch.float32, vae_dtype=torch.float32
    )
    return SimpleNamespace(folder=folder, prior=prior, edits=request.param == "LucyEditPipeline")


@pytest.fixture
def clips(generator: torch.Generator) -> torch.Tensor:
    """Two of five frames, wider than high: a transposed place would show."""
    coarse = torch.rand(10, 3, 4, 6, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, (32, 48), mode="bilinear")
    return (255 * frames).round().div(255).unflatten(0, (2, 5)).transpose(1, 2)


def test_one_step_equals_the_pipelines(
    model: SimpleNamespace, clips: torch.Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From s = 0.6 to 0 in one: the clean latents that the prediction stands for. Text comes by both ways."""
    import diffusers

    prior: Any = model.prior
    start = torch.randn(1, 16, 2, 4, 6, generator=generator)
    _, condition = prior.encode_source(clips[:1])
    text, empty = prior.embed([PROMPT]), prior.embed([""])
    (noise,) = guided_noise(prior, T, empty, condition, Guidance(5.0), (start, text))
    ours = prior._unscaled(ddim_step(prior.schedule, noise, start, T, 0))

    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.folder, use_safetensors=True)
    # It cleans prompts with a library that need not be installed; this one is clean.
    monkeypatch.setattr(f"{type(pipeline).__module__}.prompt_clean", lambda prompt: prompt)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    pipeline.scheduler.set_timesteps(sigmas=[T / 1000])
    monkeypatch.setattr(pipeline.scheduler, "set_timesteps", lambda *_, **__: None)
    pipeline.set_progress_bar_config(disable=True)
    unpacked = torch.nn.functional.pixel_shuffle(start.transpose(1, 2), 2).transpose(1, 2)
    options: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 5.0}
    if model.edits:
        frames = (255 * clips[0]).round().byte().permute(1, 2, 3, 0).numpy()
        options["video"] = [Image.fromarray(frame) for frame in frames]
    theirs = pipeline(
        prompt=PROMPT, latents=unpacked, num_inference_steps=1, output_type="latent", **options
    ).frames
    theirs = theirs * prior._deviation + prior._mean
    assert (theirs - prior._unscaled(start)).abs().mean() > 0.1  # it was a step
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    decoded = pipeline.vae.decode(theirs).sample / 2 + 0.5
    torch.testing.assert_close(prior.decode(prior._scaled(ours)), decoded, rtol=1e-4, atol=1e-4)


def test_latents_are_those_of_its_autoencoder(model: SimpleNamespace, clips: torch.Tensor) -> None:
    prior: Any = model.prior
    latents = prior.encode(clips)
    assert latents.shape == (2, 16, 2, 4, 6)
    theirs = prior.vae.encode(clips * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(prior._unscaled(latents), theirs, rtol=1e-4, atol=1e-5)
    pictures = clips.clone().requires_grad_()
    prior.encode(pictures).square().sum().backward()
    assert pictures.grad is not None and pictures.grad.abs().amax(dim=(0, 1, 3, 4)).min() > 0


def test_methods_ask_it(model: SimpleNamespace, clips: torch.Tensor, generator: torch.Generator) -> None:
    source, condition = model.prior.encode_source(clips)
    assert condition.shape == (2, 16 if model.edits else 0, 2, 4, 6)
    prior: Prior = Elsewhere(model.prior, torch.device("cpu"))
    evaluations = {"csd-edit": 3, "sds": 2} if model.edits else {"dds": 4, "sds": 2}
    for method, expected in evaluations.items():
        config = preset(method)
        config.transport = "svgd"
        step = Objective(config, prior).gradient(
            source, source, condition, prompt=PROMPT, source_prompt=SOURCE_PROMPT, generator=generator
        )
        assert step.gradient.shape == source.shape and step.gradient.isfinite().all()
        assert step.gradient.abs().max() > 0 and step.statistics["unet_evaluations"] == 2 * expected
    with pytest.raises(InputError, match="the residual"):
        Objective(preset("dds" if model.edits else "csd-edit"), prior)


def test_what_the_folder_says_is_what_the_prior_says(model: SimpleNamespace) -> None:
    prior, folder = model.prior, model.folder
    assert guided_by(folder) == prior.guided_by == "text" and is_for_clips(folder)
    assert is_image_conditioned(folder) == prior.image_conditioned == model.edits
    assert vae_factor(folder) == prior.vae_factor == 8
    assert (prior.clip_frames, prior.frame_factor, prior.time_shift) == (81, 4, 3.0)
    assert prior.schedule.is_flow


def test_lower_precision(model: SimpleNamespace, clips: torch.Tensor, generator: torch.Generator) -> None:
    half = load_prior(str(model.folder), clips_too=True, device="cpu", dtype=torch.bfloat16)
    noisy = torch.randn(1, 16, 2, 4, 6, generator=generator)
    answers = []
    for prior in (half, model.prior):
        _, condition = prior.encode_source(clips[:1])
        answers.append(prior.predict_noise(noisy, T, prior.embed([PROMPT]), condition))
    assert half.dtype == torch.bfloat16 and answers[0].dtype == torch.float32
    torch.testing.assert_close(*answers, rtol=0.1, atol=0.1)


def test_what_does_not_suit_is_refused(
    model: SimpleNamespace, clips: torch.Tensor, tmp_path: Path, generator: torch.Generator
) -> None:
    with pytest.raises(
        InputError,
        match="length of the clip does not suit(.|\n)*a multiple of 4 frames and one more(.|\n)*is 5",
    ):
        model.prior.encode(clips[:, :, :4])
    with pytest.raises(InputError, match="one for clips"):
        model.prior.encode(clips[:, :, 0])
    with pytest.raises(InputError, match="divisible by 8"):
        model.prior.encode(clips[..., :44])
    with pytest.raises(InputError, match="one for clips, and here pictures are edited"):
        check_prior(str(model.folder))
    with pytest.raises(InputError, match="no layers of motion can be put into this prior"):
        check_motion("some/adapter", model.folder)

    def changed(file: str, **changes: Any) -> str:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(model.folder, folder)
        edit_json(folder / file, **changes)
        return str(folder)

    for file, changes, message in (
        ("model_index.json", {"boundary_ratio": 0.9}, "two transformers"),
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "of a kind that cannot be used"),
        ("transformer/config.json", {"in_channels": 36}, "not of one model(.|\n)*got: *36 input"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "another with use_flow_sigmas"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "AutoencoderKLWan in vae/config.json"),
    ):
        with pytest.raises(InputError, match=message):
            check_prior(changed(file, **changes), clips_too=True)
    with pytest.raises(InputError, match="cannot be put into a prior of flow matching"):
        load_prior(
            str(model.folder), clips_too=True, device="cpu", vae=str(bundled_path("tiny-instruct") / "vae")
        )
    check_that_a_missing_part_is_named(
        shutil.copytree(model.folder, tmp_path / "part"), "transformer/config.json"
    )
