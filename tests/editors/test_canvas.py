"""The loop and the canvas of windows, against plain references."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from csd_nerf.distillation import DescentConfig, Distilled, NonFiniteResidual, Objective, preset
from csd_nerf.editors.canvas import evenly
from csd_nerf.editors.loop import descend
from csd_nerf.editors.window_canvas import Region, WindowCanvas
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior
from csd_nerf.seeds import step_seed


class Constant(Objective):
    """The same gradient everywhere: that of the prompt, a number."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(preset("csd-edit"), prior)
        self.timesteps: list[Any] = []
        self.counts: list[int] = []

    def gradient(self, latents: torch.Tensor, *_: Any, prompt: str, **options: Any) -> Distilled:
        self.timesteps.append(options["timestep"])
        self.counts.append(len(latents))
        return Distilled(torch.full_like(latents, float(prompt)), options["timestep"], {})


def canvas(height: int, width: int, regions: list[Region], channels: int = 4, **options: Any) -> WindowCanvas:
    generator = torch.Generator().manual_seed(1)
    source, condition = torch.randn(2, 1, channels, height, width, generator=generator)
    return WindowCanvas(source, condition, regions, **{"window": 24, "particles": 5, **options})


def everywhere(prompt: str, height: int, width: int) -> list[Region]:
    return [Region(prompt, torch.ones(height, width))]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 61), (84, 130)])
def test_corners_are_edited_as_much_as_the_middle(
    height: int, width: int, wrap: bool, tiny_prior: Prior
) -> None:
    """Whatever the windows and their number, a step moves every latent by the learning rate once."""
    edited = canvas(height, width, everywhere("1", height, width), wrap=wrap)
    objective = Constant(tiny_prior)
    for done in descend(edited, objective, DescentConfig(10, 0.5)):
        moved = edited.source - edited.latents
        expected = sum(DescentConfig(10, 0.5).rate(step) for step in range(done.steps))
        torch.testing.assert_close(moved, torch.full_like(moved, expected), atol=1e-5, rtol=1e-5)
    assert max(objective.counts) <= 5
    assert max(objective.counts) - min(objective.counts) <= 1


def test_particles_of_a_step_share_one_timestep_and_steps_differ(tiny_prior: Prior) -> None:
    edited = canvas(84, 130, everywhere("1", 84, 130))
    objective = Constant(tiny_prior)
    batches = []
    for done in descend(edited, objective, DescentConfig(4, 0.1)):
        if done.share == 0:
            batches.append(objective.timesteps)
            objective.timesteps = []
    assert len(batches) == 4 and all(len(batch) > 3 and len(set(batch)) == 1 for batch in batches)
    assert len({batch[0] for batch in batches}) > 1


def test_every_prompt_counts_by_its_weight(tiny_prior: Prior) -> None:
    weight = torch.rand(60, 90)
    regions = [Region("1", weight), Region("-2", 1 - weight)]
    edited = canvas(60, 90, regions)
    list(descend(edited, Constant(tiny_prior), DescentConfig(1, 1.0)))
    moved = edited.source - edited.latents
    torch.testing.assert_close(moved, (weight - 2 * (1 - weight)).expand_as(moved), atol=1e-5, rtol=1e-5)


def test_windows_are_asked_only_about_prompts_that_count_in_them(tiny_prior: Prior) -> None:
    left = torch.zeros(24, 240)
    left[:, :40] = 1
    edited = canvas(24, 240, [Region("1", left), Region("2", 1 - left)])
    batches = edited.batches(torch.Generator().manual_seed(0))
    per_prompt = {prompt: sum(len(b.places) for b in batches if b.prompt == prompt) for prompt in "12"}
    assert per_prompt["1"] <= 4 < per_prompt["2"]


def test_one_window_is_plain_descent_on_its_latents(tiny_prior: Prior) -> None:
    objective = Objective(preset("csd-edit"), tiny_prior)
    regions = everywhere("make it night", 16, 16)
    edited = canvas(16, 16, regions, channels=tiny_prior.latent_channels, window=16)
    list(descend(edited, objective, DescentConfig(3, 0.3), seed=7))

    latents = edited.source.clone()
    for step in range(3):
        generator = torch.Generator().manual_seed(step_seed(7, step))
        timestep = objective.draw_timestep(generator=generator)
        torch.rand(2, generator=generator)  # the grid's shift
        torch.randperm(1, generator=generator)  # the order of the windows
        gradient = objective.gradient(
            latents,
            edited.source,
            edited.condition,
            prompt="make it night",
            timestep=timestep,
            generator=generator,
        ).gradient
        latents = latents - DescentConfig(3, 0.3).rate(step) * gradient
    torch.testing.assert_close(edited.latents, latents, atol=1e-5, rtol=1e-5)


def test_a_step_without_finite_gradient_is_skipped_and_five_in_a_row_end_the_edit(tiny_prior: Prior) -> None:
    class Broken(Constant):
        def gradient(self, *arguments: Any, **options: Any) -> Distilled:
            self.counts.append(0)
            if len(self.counts) <= self.failures:
                raise NonFiniteResidual("the residual is not finite")
            return super().gradient(*arguments, **options)

    edited = canvas(24, 24, everywhere("1", 24, 24))
    objective = Broken(tiny_prior)
    objective.failures = 2
    list(descend(edited, objective, DescentConfig(3, 1.0)))
    moved = edited.source - edited.latents
    torch.testing.assert_close(moved, torch.full_like(moved, DescentConfig(3, 1.0).rate(2)))
    objective.counts, objective.failures = [], 5
    with pytest.raises(InputError, match="5 steps in a row"):
        list(descend(edited, objective, DescentConfig(10, 1.0)))


@pytest.mark.parametrize("count", range(1, 40))
def test_groups_are_as_few_and_as_even_as_can_be(count: int) -> None:
    groups = evenly(list(range(count)), 8)
    assert sum(groups, []) == list(range(count))
    assert len(groups) == -(-count // 8)
    sizes = {len(group) for group in groups}
    assert max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
