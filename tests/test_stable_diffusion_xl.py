"""Stable Diffusion XL as a prior, against diffusers' own pipeline: a small one, untrained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from one_step import step_of_pipeline, step_of_prior
from prior_folders import check_that_a_missing_part_is_named, edit_json

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import Objective, preset
from csd_nerf.errors import InputError
from csd_nerf.priors import ControlConfig, check_control, check_prior, load_prior
from csd_nerf.priors.stable_diffusion_xl import StableDiffusionXL

PROMPT = "a bear at night"


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled prior's VAE and text encoder, a second text encoder and a U-Net that is told of both."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("priors") / "xl"
    bundled = bundled_path("tiny-instruct")
    shutil.copytree(bundled, folder, ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    torch.manual_seed(0)
    first = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=first.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
            max_position_embeddings=first.max_position_embeddings,
            bos_token_id=first.bos_token_id,
            eos_token_id=first.eos_token_id,
        )
    )
    second.save_pretrained(folder / "text_encoder_2")
    config = UNet2DConditionModel.load_config(bundled / "unet")
    unet = UNet2DConditionModel.from_config(
        {
            **config,
            "in_channels": config["out_channels"],
            "block_out_channels": [16, 32, 48],
            "attention_head_dim": [1, 2, 3],
            "cross_attention_dim": first.hidden_size + 32,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        }
    )
    unet.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    for part in ("safety_checker", "requires_safety_checker", "feature_extractor", "image_encoder"):
        index.pop(part, None)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def prior(xl_folder: Path) -> StableDiffusionXL:
    loaded = load_prior(str(xl_folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)
    assert isinstance(loaded, StableDiffusionXL) and not loaded.image_conditioned
    return loaded


@pytest.mark.parametrize("empty_is_zero", [True, False])
def test_one_step_equals_the_pipelines(xl_folder: Path, tmp_path: Path, generator, empty_is_zero) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = shutil.copytree(xl_folder, tmp_path / "prior")
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=empty_is_zero)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True, add_watermarker=False)
    start = torch.randn(1, pipeline.vae.config.latent_channels, 8, 12, generator=generator)
    theirs = step_of_pipeline(pipeline, PROMPT, start)

    prior = load_prior(str(folder), device="cpu", dtype=torch.float32, vae_dtype=torch.float32)
    assert prior.embed([""]).any() == (not empty_is_zero)
    ours, _ = step_of_prior(prior, pipeline, PROMPT, start, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_prompt_as_a_whole_and_the_size_are_heard(prior: StableDiffusionXL, generator) -> None:
    noisy = torch.randn(3, prior.latent_channels, 8, 12, generator=generator)
    text = prior.embed([PROMPT, "winter", ""])
    whole = prior.predict_noise(noisy, 400, text, None)
    other = text.clone()
    other[:, -1] = text[[1, 0, 0], -1]
    assert (prior.predict_noise(noisy, 400, other, None) - whole).abs().amax((1, 2, 3)).min() > 1e-4
    alone = torch.cat([prior.predict_noise(noisy[i : i + 1], 400, text[i : i + 1], None) for i in range(3)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)


def test_objectives_need_not_know(prior: StableDiffusionXL, generator) -> None:
    latents, source = 0.5 * torch.randn(2, 3, prior.latent_channels, 16, 16, generator=generator)
    step = Objective(preset("cds"), prior).gradient(
        latents, source, latents[:, :0], prompt=PROMPT, source_prompt="a bear", generator=generator
    )
    assert step.gradient.isfinite().all() and step.gradient.abs().max() > 0


@pytest.mark.parametrize(
    "part", ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2"]
)
def test_missing_parts_are_named(xl_folder: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(xl_folder, tmp_path / "prior")
    check_that_a_missing_part_is_named(folder, part)


def test_what_cannot_be_combined(xl_folder: Path, control_net_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ControlNets of Stable Diffusion XL"):
        check_control(ControlConfig(str(control_net_folder), "depth"), xl_folder)
    folder = shutil.copytree(xl_folder, tmp_path / "prior")
    edit_json(folder / "unet/config.json", addition_embed_type="text_image")
    with pytest.raises(InputError, match="more than a prompt(.|\n)*'text_image'"):
        check_prior(str(folder))
