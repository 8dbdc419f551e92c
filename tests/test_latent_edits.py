"""Editing pictures without a scene: gradient descent on latents, and DDIM from a noised start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from csd_nerf.bundled import bundled_path
from csd_nerf.distillation import (
    DescentConfig,
    Guidance,
    Objective,
    ObjectiveConfig,
    ddim_step,
    ddim_timesteps,
    edit_latents,
    sample_edit,
)
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior
from csd_nerf.scenes.interiors import ROOM_SCENE
from csd_nerf.scenes.operators import OPERATORS, TINT_INSTRUCTION, circular_deviation, hue_and_chroma
from csd_nerf.scenes.still_life import orbit_cameras, render

Pictures = torch.Tensor


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Two smooth pictures (2, 3, 48, 64), 0..1."""
    coarse = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, (48, 64), mode="bicubic").clamp(0, 1)


def reference_scheduler(start: int, steps: int) -> Any:
    """diffusers' DDIM over the first `start` timesteps, the way Instruct-NeRF2NeRF brings it there."""
    scheduler = DDIMScheduler.from_pretrained(bundled_path("tiny-instruct"), subfolder="scheduler")
    scheduler.register_to_config(num_train_timesteps=start)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("start", "steps"), [(1000, 20), (980, 20), (423, 20), (20, 20), (57, 7)])
def test_timesteps_and_steps_are_those_of_diffusers(start: int, steps: int, tiny_prior: Prior) -> None:
    scheduler = reference_scheduler(start, steps)
    timesteps = ddim_timesteps(start, steps)
    assert timesteps == scheduler.timesteps.tolist()
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 6, 8, generator=draw)
    for t, previous in zip(timesteps, [*timesteps[1:], 0], strict=True):
        predicted = torch.randn(2, 4, 6, 8, generator=draw)
        expected = scheduler.step(predicted, t, latents).prev_sample
        latents = ddim_step(tiny_prior.schedule, predicted, latents, t, previous)
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_a_sampled_edit_is_that_of_diffusers(tiny_prior: Prior, pictures: Pictures) -> None:
    start, guidance = 700, Guidance(5.0, 1.3)
    latents, condition = tiny_prior.encode(pictures), tiny_prior.condition(pictures)
    text, empty = tiny_prior.embed(["make it night", ""]).split(1)
    scheduler = reference_scheduler(start, 5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    expected = scheduler.add_noise(latents, noise, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        e_text, e_image, e_plain = (
            tiny_prior.predict_noise(expected, int(t), prompt.expand(2, -1, -1), shown)
            for prompt, shown in ((text, condition), (empty, condition), (empty, None))
        )
        guided = e_plain + 5.0 * (e_text - e_image) + 1.3 * (e_image - e_plain)
        expected = scheduler.step(guided, t, expected).prev_sample

    before = tiny_prior.unet_evaluations
    sampled = sample_edit(
        tiny_prior, latents, condition, prompt="make it night", guidance=guidance, start=start, steps=5,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert tiny_prior.unet_evaluations - before == 3 * 2 * 5
    torch.testing.assert_close(sampled, expected, atol=2e-3, rtol=1e-3)


def test_no_noise_is_no_edit(tiny_prior: Prior, pictures: Pictures) -> None:
    latents, condition = tiny_prior.encode(pictures), tiny_prior.condition(pictures)
    settings = {"prompt": "make it night", "guidance": Guidance(), "steps": 20}
    assert torch.equal(sample_edit(tiny_prior, latents, condition, start=0, **settings), latents)
    little = sample_edit(tiny_prior, latents, condition, start=3, **settings)
    much = sample_edit(tiny_prior, latents, condition, start=900, **settings)
    assert (little - latents).abs().mean() < 0.15 < (much - latents).abs().mean()


def test_a_text_to_image_model_samples_too(text_to_image_prior: Prior, pictures: Pictures) -> None:
    before = text_to_image_prior.unet_evaluations
    sampled = sample_edit(
        text_to_image_prior, text_to_image_prior.encode(pictures), text_to_image_prior.condition(pictures),
        prompt="a photo at night", guidance=Guidance(), start=400, steps=3,
    )  # fmt: skip
    assert sampled.isfinite().all()
    assert text_to_image_prior.unet_evaluations - before == 2 * 2 * 3


def test_descent_follows_the_gradient_and_lowers_its_rate(tiny_prior: Prior, pictures: Pictures) -> None:
    objective = Objective(ObjectiveConfig(), tiny_prior)
    source, condition = tiny_prior.encode(pictures), tiny_prior.condition(pictures)
    descent = DescentConfig(steps=5, learning_rate=0.4, decay=0.5, stairs=3)
    gradients, states = [], [source]

    def record(step: int, distilled: Any, latents: torch.Tensor) -> None:
        gradients.append(distilled.gradient)
        states.append(latents)

    edited = edit_latents(
        objective, source, source, condition, prompt="make it night", descent=descent,
        generator=torch.Generator().manual_seed(0), on_step=record,
    )  # fmt: skip
    assert torch.equal(edited, states[-1]) and len(gradients) == 5
    for step, rate in enumerate([0.4, 0.4, 0.2, 0.2, 0.1]):
        torch.testing.assert_close(states[step + 1], states[step] - rate * gradients[step])
    again = edit_latents(
        objective, source, source, condition, prompt="make it night", descent=descent,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(again, edited)


def test_night_falls_in_latent_space(tiny_prior: Prior) -> None:
    rendered = [render(camera).rgb for camera in orbit_cameras(2, size=64)]
    photos = torch.from_numpy(np.stack(rendered)).float().permute(0, 3, 1, 2)
    config = ObjectiveConfig(min_timestep=0.02, max_timestep=0.9, text_guidance=3.5)
    source, condition = tiny_prior.encode(photos), tiny_prior.condition(photos)
    answer = OPERATORS["night"].apply(photos)
    edited = edit_latents(
        Objective(config, tiny_prior), source, source, condition, prompt=OPERATORS["night"].instruction,
        descent=DescentConfig(steps=20, learning_rate=0.3, decay=1.0),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    before = (photos - answer).square().mean()
    assert (tiny_prior.decode(edited) - answer).square().mean() < before / 4


def test_views_that_see_nothing_of_each_other_agree_more_where_they_share(tiny_prior: Prior) -> None:
    cameras = ROOM_SCENE.cameras(60, size=64)[1::15]  # a wall each
    rendered = [ROOM_SCENE.render(camera, samples_per_side=2).rgb for camera in cameras]
    photos = torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2)
    source, condition = tiny_prior.encode(photos), tiny_prior.condition(photos)

    def spread(**sharing: Any) -> float:
        config = ObjectiveConfig(min_timestep=0.02, max_timestep=0.6, text_guidance=3.5, **sharing)
        edited = edit_latents(
            Objective(config, tiny_prior), source, source, condition, prompt=TINT_INSTRUCTION,
            descent=DescentConfig(steps=20, learning_rate=1.0, decay=1.0),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return circular_deviation(hue_and_chroma(tiny_prior.decode(edited).clamp(0, 1))[0])

    apart = spread(transport="independent")
    assert apart > 70 and spread(kernel="imq") < 0.7 * apart


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"learning_rate": 0.0}, {"decay": 1.5}, {"stairs": 0}])
def test_descents_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        DescentConfig(**wrong).check()  # type: ignore[arg-type]
