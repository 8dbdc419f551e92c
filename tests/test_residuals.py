"""Residuals and the objective, with the bundled prior."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from csd_nerf.distillation import (
    RESIDUALS,
    Guidance,
    NonFiniteResidual,
    Objective,
    ObjectiveConfig,
    Views,
    csd_edit,
    dds,
    pds,
    pds_coefficients,
    sds,
    svgd,
    weight,
)
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior

N = 3


@pytest.fixture(scope="module")
def views(tiny_prior: Prior) -> Views:
    """Views that have moved away from their source."""
    generator = torch.Generator().manual_seed(1)
    source = 0.5 * torch.randn(N, 4, 8, 8, generator=generator)
    target_text, source_text, empty_text = tiny_prior.embed(["make it night", "make it winter", ""]).split(1)
    return Views(
        latents=source + 0.3 * torch.randn(N, 4, 8, 8, generator=generator),
        source=source,
        condition=2 * source,
        noise=torch.randn(N, 4, 8, 8, generator=generator),
        t=600,
        target_text=target_text,
        source_text=source_text,
        empty_text=empty_text,
    )


def guided(prior: Prior, views: Views, latents: Tensor, text: Tensor, guidance: Guidance) -> Tensor:
    """InstructPix2Pix guidance, one view and one branch at a time, straight from the paper."""
    alpha, sigma = prior.schedule.alphas[views.t], prior.schedule.sigmas[views.t]
    rows = []
    for i in range(N):
        noisy = (alpha * latents[i] + sigma * views.noise[i])[None]
        picture = views.condition[i : i + 1]
        nothing = prior.predict_noise(noisy, views.t, views.empty_text, torch.zeros_like(picture))
        image = prior.predict_noise(noisy, views.t, views.empty_text, picture)
        both = prior.predict_noise(noisy, views.t, text, picture)
        rows.append(nothing + guidance.image * (image - nothing) + guidance.text * (both - image))
    return torch.cat(rows)


GUIDANCE = Guidance(text=7.5, image=1.7)


def test_csd_edit_with_five_evaluations_equals_six(tiny_prior: Prior, views: Views) -> None:
    six = guided(tiny_prior, views, views.latents, views.target_text, GUIDANCE) - guided(
        tiny_prior, views, views.source, views.empty_text, GUIDANCE
    )
    before = tiny_prior.unet_evaluations
    five = csd_edit(tiny_prior, views, GUIDANCE)
    assert tiny_prior.unet_evaluations - before == 5 * N
    assert six.square().mean() > 1e-3
    torch.testing.assert_close(five, six, rtol=0, atol=2e-5 * GUIDANCE.text)


def test_csd_edit_at_the_source_with_empty_prompt_is_zero(tiny_prior: Prior, views: Views) -> None:
    still = replace(views, latents=views.source, target_text=views.empty_text)
    assert csd_edit(tiny_prior, still, GUIDANCE).abs().max() < 1e-5
    moved = replace(views, latents=views.source)
    assert csd_edit(tiny_prior, moved, GUIDANCE).abs().max() > 1e-2


def test_dds_is_the_difference_of_two_guided_predictions(tiny_prior: Prior, views: Views) -> None:
    expected = guided(tiny_prior, views, views.latents, views.target_text, GUIDANCE) - guided(
        tiny_prior, views, views.source, views.source_text, GUIDANCE
    )
    before = tiny_prior.unet_evaluations
    torch.testing.assert_close(dds(tiny_prior, views, GUIDANCE), expected, rtol=0, atol=2e-4)
    assert tiny_prior.unet_evaluations - before == 6 * N


def test_csd_edit_is_dds_with_an_empty_source_prompt(tiny_prior: Prior, views: Views) -> None:
    without_source = replace(views, source_text=views.empty_text)
    torch.testing.assert_close(
        csd_edit(tiny_prior, views, GUIDANCE), dds(tiny_prior, without_source, GUIDANCE), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize(
    ("t", "psi", "chi"), [(21, 1.61, 0.23), (101, 0.31, 0.12), (251, 0.10, 0.087), (501, 0.03, 0.082)]
)
def test_pds_weights_are_the_released_ones(tiny_prior: Prior, t: int, psi: float, chi: float) -> None:
    """The bundled prior has Stable Diffusion's noise schedule."""
    assert pds_coefficients(tiny_prior.schedule, t) == pytest.approx((psi, chi), abs=0.006)


def test_pds_is_the_difference_of_the_stochastic_latents(tiny_prior: Prior, views: Views) -> None:
    """The definition: z = (x_t' - mu(x_t, e)) / sigma_t, the noises at t and t' the same for both."""
    kept = tiny_prior.schedule.alphas.double() ** 2
    t, earlier = views.t, views.t - 2
    beta = 1 - kept[t] / kept[t - 1]
    noise = torch.randn(views.latents.shape, generator=torch.Generator().manual_seed(3))

    def stochastic(latents: Tensor, text: Tensor) -> Tensor:
        noisy = kept[t].sqrt() * latents + (1 - kept[t]).sqrt() * views.noise
        before = kept[earlier].sqrt() * latents + (1 - kept[earlier]).sqrt() * noise
        predicted = guided(tiny_prior, views, latents, text, GUIDANCE)
        clean = (noisy - (1 - kept[t]).sqrt() * predicted) / kept[t].sqrt()
        mean = kept[earlier].sqrt() * beta / (1 - kept[t]) * clean
        mean = mean + (1 - beta).sqrt() * (1 - kept[earlier]) / (1 - kept[t]) * noisy
        return (before - mean) / ((1 - kept[earlier]) / (1 - kept[t]) * beta).sqrt()

    expected = stochastic(views.latents, views.target_text) - stochastic(views.source, views.source_text)
    torch.testing.assert_close(pds(tiny_prior, views, GUIDANCE), expected.float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("t", [0, 1])
def test_pds_is_finite_at_the_least_noise(tiny_prior: Prior, t: int) -> None:
    assert torch.tensor(pds_coefficients(tiny_prior.schedule, t)).isfinite().all()


def test_sds_is_the_guided_prediction_less_the_noise(tiny_prior: Prior, views: Views) -> None:
    expected = guided(tiny_prior, views, views.latents, views.target_text, GUIDANCE) - views.noise
    before = tiny_prior.unet_evaluations
    torch.testing.assert_close(sds(tiny_prior, views, GUIDANCE), expected, rtol=0, atol=2e-4)
    assert tiny_prior.unet_evaluations - before == 3 * N


@pytest.mark.parametrize("guidance, branch", [(Guidance(0, 0), 0), (Guidance(0, 1), 1), (Guidance(1, 1), 2)])
def test_guidance_scales_select_branches(guidance: Guidance, branch: int) -> None:
    branches = torch.randn(3, 2, 4)
    torch.testing.assert_close(guidance.combine(*branches), branches[branch])


# --------------------------------------------------------------------------------------------- the objective


def run(config: ObjectiveConfig, prior: Prior, views: Views, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    return Objective(config, prior).gradient(
        views.latents, views.source, views.condition, prompt="make it night", generator=generator, **options
    )


@pytest.mark.parametrize("weighting", ["one-minus-alpha", "uniform"])
@pytest.mark.parametrize("transport", ["svgd", "independent"])
@pytest.mark.parametrize("residual", list(RESIDUALS))
def test_gradient_is_weight_times_transported_residual(
    tiny_prior: Prior, views: Views, residual, transport, weighting
) -> None:
    config = ObjectiveConfig(residual=residual, transport=transport, weighting=weighting, image_guidance=2.0)
    result = run(config, tiny_prior, views, source_prompt="make it winter")

    generator = torch.Generator().manual_seed(0)
    t = int(torch.randint(200, 501, (), generator=generator))
    noise = torch.randn(views.latents.shape, generator=generator)
    scores = RESIDUALS[residual](tiny_prior, replace(views, t=t, noise=noise), Guidance(7.5, 2.0))
    particles = tiny_prior.schedule.alphas[t] * views.latents + tiny_prior.schedule.sigmas[t] * noise
    direction = svgd(scores, particles) if transport == "svgd" else scores
    assert result.timestep == result.statistics["timestep"] == t
    torch.testing.assert_close(result.gradient, weight(tiny_prior.schedule, t, weighting) * direction)


def test_statistics(tiny_prior: Prior, views: Views) -> None:
    statistics = run(ObjectiveConfig(), tiny_prior, views).statistics
    assert statistics["unet_evaluations"] == 5 * N
    assert statistics["kernel_offdiagonal_mean"] == pytest.approx(1 / (N + 1), rel=0.2)
    assert 0 < statistics["gradient_rms"] < statistics["residual_rms"]
    assert (
        "kernel_offdiagonal_mean"
        not in run(ObjectiveConfig(transport="independent"), tiny_prior, views).statistics
    )


def test_the_gradient_carries_no_graph(tiny_prior: Prior, views: Views) -> None:
    latents = views.latents.clone().requires_grad_()
    result = run(ObjectiveConfig(), tiny_prior, replace(views, latents=latents))
    assert not result.gradient.requires_grad
    (result.gradient * latents).sum().backward()
    torch.testing.assert_close(latents.grad, result.gradient)


def test_one_view_does_not_feel_the_transport(tiny_prior: Prior, views: Views) -> None:
    one = Views(
        **{name: value[:1] if isinstance(value, Tensor) else value for name, value in vars(views).items()}
    )
    with_svgd = run(ObjectiveConfig(), tiny_prior, one)
    assert torch.equal(
        with_svgd.gradient, run(ObjectiveConfig(transport="independent"), tiny_prior, one).gradient
    )
    assert with_svgd.statistics["kernel_offdiagonal_mean"] == 1


def test_shared_noise_gives_equal_views_equal_gradients(tiny_prior: Prior, views: Views) -> None:
    alike = replace(
        views,
        latents=views.latents[:1].expand(N, -1, -1, -1),
        source=views.source[:1].expand(N, -1, -1, -1),
        condition=views.condition[:1].expand(N, -1, -1, -1),
    )
    shared = run(ObjectiveConfig(noise="shared"), tiny_prior, alike).gradient
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=1e-4)
    own = run(ObjectiveConfig(noise="per-particle"), tiny_prior, alike).gradient
    assert (own - own[:1]).abs().max() > 1e-2


def test_same_seed_same_gradient(tiny_prior: Prior, views: Views) -> None:
    first, again, other = (
        run(ObjectiveConfig(), tiny_prior, views, seed=seed).gradient for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_annealed_timesteps_follow_the_step(tiny_prior: Prior, views: Views) -> None:
    config = ObjectiveConfig(timesteps="annealed", min_timestep=0.1, max_timestep=0.9)
    timesteps = [run(config, tiny_prior, views, step=step, max_steps=3).timestep for step in range(3)]
    assert timesteps == [899, 500, 100]


def test_non_finite_residuals_are_reported(tiny_prior: Prior, views: Views) -> None:
    latents = views.latents.clone()
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteResidual, match="timestep"):
        run(ObjectiveConfig(), tiny_prior, replace(views, latents=latents))


def test_impossible_timesteps_are_refused_at_once(tiny_prior: Prior) -> None:
    with pytest.raises(InputError):
        Objective(ObjectiveConfig(min_timestep=0.6, max_timestep=0.5), tiny_prior)
