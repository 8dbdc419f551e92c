"""Timesteps and weights."""

from __future__ import annotations

import pytest
import torch

from csd_nerf.distillation import TimestepRange, ddim_step, weight
from csd_nerf.errors import InputError
from csd_nerf.priors import NoiseSchedule

T = 1000


def test_uniform_timesteps_fill_the_range_and_stay_in_it(generator: torch.Generator) -> None:
    timesteps = TimestepRange(0.1, 0.15)
    drawn = {timesteps.sample(T, generator=generator) for _ in range(2000)}
    assert drawn == set(range(100, 151))


def test_the_whole_schedule_can_be_asked_for(generator: torch.Generator) -> None:
    drawn = {TimestepRange(0, 1).sample(5, generator=generator) for _ in range(200)}
    assert drawn == set(range(5))


def test_annealed_timesteps_fall_from_high_to_low() -> None:
    timesteps = TimestepRange(0.02, 0.98, "annealed")
    walk = [timesteps.sample(T, step=step, max_steps=11) for step in range(11)]
    assert walk[0] == 979 and walk[-1] == 20
    assert walk == sorted(walk, reverse=True)
    assert max(walk[i] - walk[i + 1] for i in range(10)) <= 97  # evenly


def test_annealed_timesteps_stay_low_past_the_end() -> None:
    timesteps = TimestepRange(0.02, 0.98, "annealed")
    assert timesteps.sample(T, step=500, max_steps=100) == 20
    assert timesteps.sample(T, step=0, max_steps=1) == 979


def test_one_timestep_is_a_range() -> None:
    assert TimestepRange(0.5, 0.5).sample(T) == round(0.5 * (T - 1))


@pytest.mark.parametrize("low, high", [(0.5, 0.2), (-0.1, 0.5), (0.2, 1.1), (float("nan"), 0.5)])
def test_impossible_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(InputError, match="range of timesteps"):
        TimestepRange(low, high)


def test_weights() -> None:
    alphas_cumprod = torch.tensor([0.99, 0.5, 0.1], dtype=torch.float64)
    schedule = NoiseSchedule.from_alphas_cumprod(alphas_cumprod)
    for t in range(3):
        assert weight(schedule, t, "one-minus-alpha") == pytest.approx(1 - alphas_cumprod[t].item())
        assert weight(schedule, t, "one-over-alpha") == pytest.approx(alphas_cumprod[t].item() ** -0.5)
        assert weight(schedule, t, "uniform") == 1


def test_a_flow_goes_straight_from_the_picture_to_noise(generator: torch.Generator) -> None:
    schedule = NoiseSchedule.flow(1000)
    picture, noise = torch.randn(2, 1, 4, 4, 4, generator=generator)
    assert schedule.is_flow and schedule.num_timesteps == 1000
    torch.testing.assert_close(schedule.add_noise(picture, noise, 0), picture)
    torch.testing.assert_close(schedule.add_noise(picture, noise, 250), 0.75 * picture + 0.25 * noise)
    assert not NoiseSchedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 1000)).is_flow


def test_a_step_of_ddim_along_a_flow_is_one_of_euler(generator: torch.Generator) -> None:
    schedule = NoiseSchedule.flow(1000)
    noisy, velocity = torch.randn(2, 1, 4, 4, 4, generator=generator)
    predicted = noisy + 0.4 * velocity  # the noise at s = 0.6
    stepped = ddim_step(schedule, predicted, noisy, 600, 450)
    torch.testing.assert_close(stepped, noisy - 0.15 * velocity)


def test_timesteps_are_drawn_as_the_sampler_visits_them(generator: torch.Generator) -> None:
    timesteps = TimestepRange(0, 1, "visited")
    drawn = [timesteps.sample(T, time_shift=3.0, generator=generator) for _ in range(4000)]
    quartiles = torch.tensor(drawn).double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()) / (T - 1)
    assert quartiles.tolist() == pytest.approx([0.5, 0.75, 0.9], abs=0.02)  # k u / (1 + (k - 1) u)
    evenly = [timesteps.sample(T, generator=generator) for _ in range(4000)]
    assert torch.tensor(evenly).double().mean() / (T - 1) == pytest.approx(0.5, abs=0.02)


def test_visited_timesteps_stay_in_the_range(generator: torch.Generator) -> None:
    timesteps = TimestepRange(0.2, 0.5, "visited")
    drawn = [timesteps.sample(T, time_shift=3.0, generator=generator) for _ in range(2000)]
    assert 200 <= min(drawn) < 205 and 495 < max(drawn) <= 500
    # Half way between their places among the sampler's steps, 1/13 and 1/4; evenly it would be 350.
    assert sorted(drawn)[1000] == pytest.approx(369, abs=8)
