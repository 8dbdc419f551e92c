"""The bundled text-to-image prior and its depth ControlNet, on views of the still life."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csd_nerf.bundled import bundled_path
from csd_nerf.priors import Prior, load_prior
from csd_nerf.priors.control import ControlConfig
from csd_nerf.scenes.casting import SceneView
from csd_nerf.scenes.operators import CAPTIONS, OPERATORS
from csd_nerf.scenes.still_life import orbit_cameras, render

CAMERAS = orbit_cameras(4, size=64, seed=5)


@pytest.fixture(scope="module")
def pictures() -> list[SceneView]:
    return [render(camera, samples_per_side=2) for camera in CAMERAS]


def as_batch(pictures: list[SceneView]) -> Tensor:
    return torch.stack([torch.from_numpy(picture.rgb).permute(2, 0, 1) for picture in pictures])


@torch.no_grad()
def noise_error(prior: Prior, images: Tensor, caption: str, condition: Tensor) -> float:
    latents = prior.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    text = prior.embed([caption]).expand(len(latents), -1, -1)
    noisy = prior.schedule.add_noise(latents, noise, 500)
    return (prior.predict_noise(noisy, 500, text, condition) - noise).square().mean().item()


def test_both_are_small_and_the_prior_shares_its_parts() -> None:
    for name in ("tiny-sd", "tiny-depth"):
        files = [file for file in bundled_path(name).rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 20_000_000
        assert (bundled_path(name) / "README.md").exists()
    for part, other in (("vae", "tiny-video"), ("text_encoder", "tiny-instruct")):
        (ours,) = (bundled_path("tiny-sd") / part).glob("*.safetensors")
        (theirs,) = (bundled_path(other) / part).glob("*.safetensors")
        assert ours.read_bytes() == theirs.read_bytes()


def test_diffusers_own_pipeline_loads_it_and_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(bundled_path("tiny-sd"))
    pipeline.set_progress_bar_config(disable=True)

    def brightness(prompt: str) -> float:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 6, "guidance_scale": 3.0, "generator": generator}
        drawn = pipeline([prompt] * 4, height=64, width=64, output_type="pt", **options).images
        return float(drawn.mean())

    assert brightness("a photo at night") < 0.5 * brightness("a photo in winter")


@pytest.mark.parametrize("style", ["sketch", "sepia", "night", "winter", "autumn"])
def test_a_style_is_told_best_by_its_own_caption(style: str, pictures: list[SceneView]) -> None:
    prior = load_prior("tiny-sd", device="cpu")
    styled = OPERATORS[style].apply(as_batch(pictures))
    condition = prior.condition(styled)
    errors = {name: noise_error(prior, styled, CAPTIONS[name], condition) for name in (style, "identity")}
    assert errors[style] < errors["identity"]


def test_the_control_net_follows_the_depth_it_is_shown(pictures: list[SceneView]) -> None:
    prior = load_prior("tiny-sd", device="cpu", control=ControlConfig(net="tiny-depth", picture="depth"))
    images = as_batch(pictures)
    shown = prior.condition(torch.stack([torch.from_numpy(picture.depth)[None] for picture in pictures]))
    own, others, none = (
        noise_error(prior, images, CAPTIONS["identity"], condition)
        for condition in (shown, shown.roll(1, 0), torch.zeros_like(shown))
    )
    assert own < 0.95 * none and own < 0.95 * others
