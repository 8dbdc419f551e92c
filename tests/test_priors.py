"""The priors against diffusers' own pipelines, their gradients, and bad input."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from memory import peak_bytes
from one_step import step_of_pipeline, step_of_prior
from prior_folders import check_that_a_missing_part_is_named, edit_json

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import Guidance
from csd_nerf.errors import InputError
from csd_nerf.priors import check_prior, load_prior
from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
from csd_nerf.priors.stable_diffusion import StableDiffusion

PROMPT = "make it night"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        bundled_path("tiny-instruct"), torch_dtype=torch.float32, use_safetensors=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    """Smooth pictures, as latents of noise would say little."""
    coarse = torch.rand(3, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 48), mode="bicubic").clamp(0, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled prior to break."""
    return shutil.copytree(bundled_path("tiny-instruct"), tmp_path / "prior")


# --------------------------------------------------------------------------------------- what it computes


def test_one_step_equals_the_pipelines(tiny_prior: InstructPix2Pix, pipeline, images, generator) -> None:
    start = torch.randn(1, tiny_prior.latent_channels, 8, 12, generator=generator)
    guidance = Guidance(7.5, 1.5)
    theirs = pipeline(
        PROMPT,
        image=images[:1],
        latents=start,
        num_inference_steps=1,
        guidance_scale=guidance.text,
        image_guidance_scale=guidance.image,
        output_type="latent",
    ).images

    t = int(pipeline.scheduler.timesteps[0])
    text, empty = tiny_prior.embed([PROMPT, ""]).split(1)
    picture = tiny_prior.condition(images[:1])
    predicted = tiny_prior.predict_noise(
        start.expand(3, -1, -1, -1),
        t,
        torch.cat([empty, empty, text]),
        torch.cat([torch.zeros_like(picture), picture, picture]),
    )
    noise = guidance.combine(*predicted.split(1))
    ours = pipeline.scheduler.step(noise, t, start).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_one_step_of_a_text_to_image_model_equals_the_pipelines(
    text_to_image_prior: StableDiffusion, text_to_image_folder: Path, images, generator
) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(text_to_image_folder, use_safetensors=True)
    start = torch.randn(1, text_to_image_prior.latent_channels, 8, 12, generator=generator)
    theirs = step_of_pipeline(pipeline, PROMPT, start)

    assert isinstance(text_to_image_prior, StableDiffusion) and not text_to_image_prior.image_conditioned
    nothing = text_to_image_prior.condition(images[:1])
    assert nothing.shape == (1, 0, 8, 12)
    ours, _ = step_of_prior(text_to_image_prior, pipeline, PROMPT, start, nothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_add_noise_is_diffusers(tiny_prior: InstructPix2Pix, pipeline, generator) -> None:
    latents, noise = torch.randn(2, 2, tiny_prior.latent_channels, 8, 8, generator=generator)
    assert tiny_prior.schedule.num_timesteps == pipeline.scheduler.config.num_train_timesteps
    for t in (0, 20, 500, 999):
        expected = pipeline.scheduler.add_noise(latents, noise, torch.tensor([t, t]))
        torch.testing.assert_close(tiny_prior.schedule.add_noise(latents, noise, t), expected)


def test_latents_are_scaled_and_the_condition_is_not(tiny_prior: InstructPix2Pix, pipeline, images) -> None:
    with torch.no_grad():
        mode = pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
        decoded = (pipeline.vae.decode(mode).sample / 2 + 0.5).clamp(0, 1)
        latents = tiny_prior.encode(images)
    torch.testing.assert_close(tiny_prior.condition(images), mode, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents, mode * pipeline.vae.config.scaling_factor, rtol=0, atol=1e-4)
    torch.testing.assert_close(tiny_prior.decode(latents), decoded, rtol=0, atol=1e-3)
    assert latents.shape == (
        3,
        tiny_prior.latent_channels,
        32 // tiny_prior.vae_factor,
        48 // tiny_prior.vae_factor,
    )


@pytest.mark.parametrize("kind", ["tiny_prior", "text_to_image_prior"])
def test_velocity_is_turned_into_noise(
    request: pytest.FixtureRequest, kind: str, text_to_image_folder: Path, tmp_path: Path, generator
) -> None:
    from diffusers import DDIMScheduler

    model = bundled_path("tiny-instruct") if kind == "tiny_prior" else text_to_image_folder
    folder = shutil.copytree(model, tmp_path / "prior")
    epsilon_prior = request.getfixturevalue(kind)
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    prior = load_prior(str(folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)
    noisy, t = torch.randn(2, prior.latent_channels, 8, 8, generator=generator), 300
    text = epsilon_prior.embed([PROMPT, ""])
    network_output = epsilon_prior.predict_noise(noisy, t, text, None)  # the same network predicts "noise"
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    clean = scheduler.step(network_output, t, noisy).pred_original_sample
    noise = prior.predict_noise(noisy, t, text, None)
    torch.testing.assert_close(prior.schedule.add_noise(clean, noise, t), noisy, rtol=0, atol=1e-4)


def test_gradient_of_encode_is_the_finite_difference(tiny_prior: InstructPix2Pix, images, generator) -> None:
    images = images.clamp(0.1, 0.9)
    direction = torch.nn.functional.avg_pool2d(torch.randn(images.shape, generator=generator), 5, 1, 2)
    probe = torch.randn(tiny_prior.encode(images).shape, generator=generator)

    variable = images.clone().requires_grad_()
    (tiny_prior.encode(variable) * probe).sum().backward()
    slope = (variable.grad * direction).sum()

    step = 1e-2
    with torch.no_grad():
        ahead, behind = (tiny_prior.encode(images + sign * step * direction) for sign in (1, -1))
    torch.testing.assert_close(slope, ((ahead - behind) * probe).sum() / (2 * step), rtol=0.01, atol=0.01)


def test_micro_batches_change_nothing(tiny_prior: InstructPix2Pix, images, generator, monkeypatch) -> None:
    noisy = torch.randn(7, tiny_prior.latent_channels, 8, 8, generator=generator)
    condition = torch.randn(7, tiny_prior.latent_channels, 8, 8, generator=generator)
    text = tiny_prior.embed([PROMPT]).expand(7, -1, -1)

    def everything() -> list[torch.Tensor]:
        variable = images.clone().requires_grad_()
        latents = tiny_prior.encode(variable)
        latents.square().sum().backward()
        decoded = tiny_prior.decode(latents.detach())
        return [latents, variable.grad, decoded, tiny_prior.predict_noise(noisy, 400, text, condition)]

    results = []
    for size in (1, 3, 100):
        monkeypatch.setattr(tiny_prior, "unet_batch_size", size)
        monkeypatch.setattr(tiny_prior, "vae_batch_size", size)
        results.append(everything())
    for other in results[1:]:
        for result, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_memory_of_encode_does_not_grow_with_the_views(tiny_prior: InstructPix2Pix, generator) -> None:
    def peak(count: int) -> int:
        images = torch.rand(count, 3, 64, 64, generator=generator).requires_grad_()
        return peak_bytes(lambda: tiny_prior.encode(images).sum().backward())

    one, eight = peak(1), peak(8)
    seven_views = 7 * 4 * (3 * 64 * 64)
    assert eight - one < 6 * seven_views  # pictures, their gradients, and copies of them; no activations
    assert one > 30 * seven_views / 7  # which would be far larger


def test_predict_noise_is_float32_without_gradient_and_counts(tiny_prior: InstructPix2Pix, generator) -> None:
    noisy = torch.randn(3, tiny_prior.latent_channels, 8, 8, generator=generator, requires_grad=True)
    text = tiny_prior.embed(["", PROMPT, ""])
    before = tiny_prior.unet_evaluations
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = tiny_prior.predict_noise(noisy, 500, text, torch.zeros_like(noisy))
    assert tiny_prior.unet_evaluations - before == 3
    assert noise.shape == noisy.shape and noise.dtype == torch.float32 and not noise.requires_grad
    torch.testing.assert_close(noise, tiny_prior.predict_noise(noisy, 500, text, None))


def test_bfloat16_is_near_float32(tiny_prior: InstructPix2Pix, generator) -> None:
    noisy = torch.randn(2, tiny_prior.latent_channels, 8, 8, generator=generator)
    text = tiny_prior.embed(["", PROMPT])
    half = load_prior("tiny-instruct", device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    expected = tiny_prior.predict_noise(noisy, 500, text, None)
    torch.testing.assert_close(half.predict_noise(noisy, 500, text, None), expected, rtol=0, atol=0.1)


# ------------------------------------------------------------------------------------------ text


def test_the_text_encoder_is_dropped_and_its_results_kept(pipeline, monkeypatch) -> None:
    prior = load_prior("tiny-instruct", device="cpu")
    assert isinstance(prior, InstructPix2Pix)
    loaded: list[weakref.ref] = []
    load_text = prior._load_text

    def recording_load():
        models = load_text()
        loaded.extend(weakref.ref(encoder) for _, encoder in models)
        return models

    monkeypatch.setattr(prior, "_load_text", recording_load)
    first = prior.embed([PROMPT, "", PROMPT])
    gc.collect()
    assert len(loaded) == 1 and loaded[0]() is None
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])

    again = prior.embed(["", PROMPT])
    assert len(loaded) == 1  # cached
    assert torch.equal(again, first[[1, 0]])
    prior.embed(["make it winter"])
    assert len(loaded) == 2

    tokens = pipeline.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(first[:1], pipeline.text_encoder(tokens)[0])


def test_a_prompt_that_is_too_long_warns(
    tiny_prior: InstructPix2Pix, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tiny_prior.embed(["night " * 100])
    assert "cuts the prompt off" in caplog.text


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("kind", ["tiny_prior", "text_to_image_prior"])
def test_sizes_that_do_not_fit_the_vae(request: pytest.FixtureRequest, kind: str) -> None:
    prior = request.getfixturevalue(kind)
    factor = prior.vae_factor
    for method in (prior.encode, prior.condition):
        with pytest.raises(InputError, match=f"divisible by {factor}(.|\n)*33 x 48(.|\n)*32 x 48"):
            method(torch.rand(1, 3, 33, 48))


@pytest.mark.parametrize("part", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer"])
def test_missing_parts_are_named(folder: Path, part: str) -> None:
    check_that_a_missing_part_is_named(folder, part)


def test_pickled_weights_are_not_weights(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"no unet/diffusion_pytorch_model\.safetensors.*\.bin weights"):
        load_prior(str(folder), device="cpu")


def test_models_of_another_kind_are_refused(folder: Path) -> None:
    edit_json(folder / "unet/config.json", in_channels=9)
    with pytest.raises(InputError, match="neither(.|\n)*8 and 4(.|\n)*9 input channels and 8 latent"):
        check_prior(str(folder))
    edit_json(folder / "unet/config.json", in_channels=8, class_embed_type="projection")
    with pytest.raises(InputError, match="more than a prompt(.|\n)*class_embed_type 'projection'"):
        check_prior(str(folder))


def test_a_class_refuses_the_other_kinds_u_net(
    tiny_prior: InstructPix2Pix, text_to_image_prior: StableDiffusion
) -> None:
    for prior, other in ((tiny_prior, text_to_image_prior), (text_to_image_prior, tiny_prior)):
        with pytest.raises(InputError, match=f"not that of {type(prior).__name__}"):
            type(prior)(
                unet=other.unet,
                vae=prior.vae,
                load_text=prior._load_text,
                schedule=prior.schedule,
                unet_batch_size=1,
                vae_batch_size=1,
            )


def test_unreadable_files_are_named(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        InputError, match=r"unet/diffusion_pytorch_model.safetensors cannot be read(.|\n)*1000 bytes"
    ):
        check_prior(str(folder))
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(InputError, match=r"vae/config.json cannot be read"):
        check_prior(str(folder))


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    channels = json.loads((folder / "unet/config.json").read_text())["block_out_channels"]
    edit_json(folder / "unet/config.json", block_out_channels=[2 * width for width in channels])
    with pytest.raises(InputError, match="the UNet2DConditionModel in .*unet cannot be loaded"):
        load_prior(str(folder), device="cpu")


def test_other_kinds_of_prediction_are_refused(folder: Path) -> None:
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(InputError, match="epsilon or v_prediction(.|\n)*'sample'"):
        load_prior(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["tiny-instrct", "/no/such/folder"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"no such prior(.|\n)*tiny-instruct"):
        check_prior(name)


def test_the_hub_s_own_folder_of_a_model_is_the_model(tmp_path: Path) -> None:
    cached = tmp_path / "models--someone--some-model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    model = shutil.copytree(bundled_path("tiny-instruct"), cached / "snapshots" / "0123abc")
    assert check_prior(str(cached)) == model


def test_a_hub_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert check_prior("nobody/no-such-model") is None
    with pytest.raises(
        InputError, match=r"nobody/no-such-model(.|\n)*without network use(.|\n)*tiny-instruct"
    ):
        load_prior("nobody/no-such-model", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(InputError, match="there is none(.|\n)*choose the device cpu"):
        load_prior("tiny-instruct", device="cuda")


def test_importing_and_checking_need_neither_diffusers_nor_nerfstudio() -> None:
    script = (
        "import sys, csd_nerf.distillation, csd_nerf.priors as priors; priors.check_prior('tiny-instruct');"
        "print([name for name in ('diffusers', 'transformers', 'nerfstudio') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
