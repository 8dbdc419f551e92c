"""FLUX.1, a text-to-image model of flow matching, as a prior: a small one, untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prior_folders import save_flux_kontext

from csd_nerf.distillation import Objective, ddim_step, preset
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior, check_prior, load_prior
from csd_nerf.priors.folder import guided_by, is_image_conditioned

PROMPT, SOURCE_PROMPT = "a bear at night", "a bear"
T = 600


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux_kontext(
        tmp_path_factory.mktemp("priors") / "flux", guidance_embeds=request.param, pipeline="FluxPipeline"
    )


@pytest.fixture(scope="module")
def prior(folder: Path) -> Prior:
    return load_prior(str(folder), device="cpu", dtype=torch.float32)


def test_one_step_equals_the_pipelines(folder: Path, prior: Any, generator) -> None:
    import diffusers

    start = torch.randn(1, prior.latent_channels, 8, 12, generator=generator)
    noise = prior.predict_noise(start, T, prior.embed([PROMPT]), prior.condition(torch.rand(1, 3, 64, 96)))
    ours = prior._unscaled(ddim_step(prior.schedule, noise, start, T, 0))

    pipeline = diffusers.FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.nn.functional.pixel_shuffle(start, 2)
    packed = pipeline._pack_latents(latents, *latents.shape)
    packed = pipeline(
        PROMPT,
        latents=packed,
        height=64,
        width=96,
        sigmas=[T / 1000],
        num_inference_steps=1,
        output_type="latent",
    ).images
    theirs = pipeline._unpack_latents(packed, 64, 96, pipeline.vae_scale_factor)
    theirs = theirs / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    assert (theirs - prior._unscaled(start)).abs().mean() > 0.1  # it was a step
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "evaluations"), [("dds", 2), ("cds", 4), ("sds", 1)])
def test_methods_for_text_to_image_models_ask_it(
    prior: Prior, generator, method: str, evaluations: int
) -> None:
    """Guidance is distilled into it: one evaluation for each of target and source, and for CDS one pass each
    through its attention."""
    views = torch.rand(2, 3, 64, 96, generator=generator)
    source, condition = prior.encode_source(views)
    assert condition.shape == (2, 0, 8, 12)
    latents = source + 0.1 * torch.randn(source.shape, generator=generator)
    step = Objective(preset(method), prior).gradient(
        latents, source, condition, prompt=PROMPT, source_prompt=SOURCE_PROMPT, generator=generator
    )
    assert step.gradient.isfinite().all() and step.gradient.abs().max() > 0
    assert step.statistics["unet_evaluations"] == 2 * evaluations
    assert ("structure_loss" in step.statistics) == (method == "cds")


@pytest.mark.parametrize("method", ["pds", "csd-edit"])
def test_methods_that_do_not_fit_are_refused(prior: Prior, method: str) -> None:
    with pytest.raises(InputError, match=f"the residual {method}"):
        Objective(preset(method), prior)


def test_what_the_folder_says_is_what_the_prior_says(folder: Path, prior: Prior) -> None:
    check_prior(str(folder))
    assert guided_by(folder) == prior.guided_by == "itself"
    assert not is_image_conditioned(folder) and not prior.image_conditioned
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
