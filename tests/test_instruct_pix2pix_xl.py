"""InstructPix2Pix on Stable Diffusion XL as a prior, against diffusers' own pipeline: small, untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from one_step import GUIDANCE
from prior_folders import edit_json
from test_stable_diffusion_xl import xl_folder  # noqa: F401

from csd_nerf.distillation import Guidance, Objective, ObjectiveConfig
from csd_nerf.distillation.residuals import guided_noise
from csd_nerf.priors import check_prior, load_prior
from csd_nerf.priors.folder import guided_by, is_image_conditioned, is_xl
from csd_nerf.priors.instruct_pix2pix_xl import InstructPix2PixXL

PROMPT = "make it night"


@pytest.fixture(scope="module")
def folder(xl_folder: Path) -> Path:  # noqa: F811
    """Stable Diffusion XL's, with a U-Net of twice the channels."""
    config = dict(UNet2DConditionModel.load_config(xl_folder / "unet"))
    config["in_channels"] = 2 * config["out_channels"]
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(xl_folder / "unet")
    edit_json(xl_folder / "model_index.json", _class_name="StableDiffusionXLInstructPix2PixPipeline")
    return xl_folder


@pytest.mark.parametrize("empty_is_zero", [True, False])
def test_one_step_equals_the_pipelines(folder: Path, generator, empty_is_zero: bool) -> None:
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=empty_is_zero)
    pipeline: Any = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(
        folder, use_safetensors=True, add_watermarker=False
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, pipeline.vae.config.latent_channels, 8, 12, generator=generator)
    photo = torch.rand(1, 3, 32, 48, generator=generator)
    theirs = pipeline(
        PROMPT,
        image=photo,
        height=32,
        width=48,
        latents=start,
        num_inference_steps=1,
        guidance_scale=GUIDANCE,
        image_guidance_scale=1.5,
        output_type="latent",
    ).images

    prior = load_prior(str(folder), device="cpu", dtype=torch.float32)
    t = int(pipeline.scheduler.timesteps[0])
    texts = prior.embed([PROMPT, ""])
    guidance = Guidance(GUIDANCE, 1.5)
    (noise,) = guided_noise(prior, t, texts[1:], prior.condition(photo), guidance, (start, texts[:1]))
    ours = pipeline.scheduler.step(noise, t, start).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_an_objective_asks_it_as_any_editor(folder: Path, generator) -> None:
    check_prior(str(folder))
    prior = load_prior(str(folder), device="cpu", dtype=torch.float32)
    assert isinstance(prior, InstructPix2PixXL) and prior.image_conditioned and is_xl(folder)
    assert is_image_conditioned(folder) and guided_by(folder) == prior.guided_by == "picture-and-text"
    source, condition = prior.encode_source(torch.rand(2, 3, 32, 48, generator=generator))
    step = Objective(ObjectiveConfig(), prior).gradient(
        source + 0.1, source, condition, prompt=PROMPT, generator=generator
    )
    assert step.gradient.isfinite().all() and step.gradient.abs().max() > 0
    assert step.statistics["unet_evaluations"] == 2 * 5
