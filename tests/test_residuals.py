"""Residuals and the objective, with both kinds of prior: InstructPix2Pix and text-to-image."""

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
    StructureConfig,
    Views,
    check_fit,
    csd_edit,
    dds,
    dreamcatalyst,
    evaluations,
    pds,
    pds_coefficients,
    sds,
    ssd,
    svgd,
    weight,
)
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior

N = 3
SIZE = (8, 12)
VIEW_TENSORS = ("latents", "source", "condition", "noise")
GUIDANCE = Guidance(text=7.5, image=1.7)


@pytest.fixture(scope="module", params=["tiny_prior", "text_to_image_prior"])
def prior(request: pytest.FixtureRequest) -> Prior:
    """Either kind of prior."""
    return request.getfixturevalue(request.param)


def moved_views(prior: Prior) -> Views:
    """Views that have moved away from their source."""
    generator = torch.Generator().manual_seed(1)
    source = 0.5 * torch.randn(N, prior.latent_channels, *SIZE, generator=generator)
    target_text, source_text, empty_text = prior.embed(["make it night", "make it winter", ""]).split(1)
    return Views(
        latents=source + 0.3 * torch.randn(N, prior.latent_channels, *SIZE, generator=generator),
        source=source,
        condition=2 * source if prior.image_conditioned else source[:, :0],
        noise=torch.randn(N, prior.latent_channels, *SIZE, generator=generator),
        t=600,
        target_text=target_text,
        source_text=source_text,
        empty_text=empty_text,
    )


@pytest.fixture(scope="module")
def views(prior: Prior) -> Views:
    return moved_views(prior)


def guided(prior: Prior, views: Views, latents: Tensor, text: Tensor, guidance: Guidance) -> Tensor:
    """Classifier-free guidance, one view and one branch at a time, straight from the papers."""
    alpha, sigma = prior.schedule.alphas[views.t], prior.schedule.sigmas[views.t]
    rows = []
    for i in range(N):
        noisy = (alpha * latents[i] + sigma * views.noise[i])[None]
        picture = views.condition[i : i + 1]
        nothing = prior.predict_noise(noisy, views.t, views.empty_text, torch.zeros_like(picture))
        both = prior.predict_noise(noisy, views.t, text, picture)
        if prior.image_conditioned:
            image = prior.predict_noise(noisy, views.t, views.empty_text, picture)
            rows.append(nothing + guidance.image * (image - nothing) + guidance.text * (both - image))
        else:
            rows.append(nothing + guidance.text * (both - nothing))
    return torch.cat(rows)


def counted(prior: Prior, residual, views: Views) -> int:
    """U-Net evaluations a view."""
    before = prior.unet_evaluations
    residual(prior, views, GUIDANCE)
    return (prior.unet_evaluations - before) // N


def test_sds_is_the_guided_prediction_less_the_noise(prior: Prior, views: Views) -> None:
    expected = guided(prior, views, views.latents, views.target_text, GUIDANCE) - views.noise
    torch.testing.assert_close(sds(prior, views, GUIDANCE), expected, rtol=0, atol=2e-4)
    assert counted(prior, sds, views) == (3 if prior.image_conditioned else 2)


def test_dds_is_the_difference_of_two_guided_predictions(prior: Prior, views: Views) -> None:
    expected = guided(prior, views, views.latents, views.target_text, GUIDANCE) - guided(
        prior, views, views.source, views.source_text, GUIDANCE
    )
    assert expected.square().mean() > 1e-3
    torch.testing.assert_close(dds(prior, views, GUIDANCE), expected, rtol=0, atol=2e-4)
    assert counted(prior, dds, views) == (6 if prior.image_conditioned else 4)


def test_dds_of_identical_prompts_and_latents_is_zero(prior: Prior, views: Views) -> None:
    still = replace(views, latents=views.source, target_text=views.source_text)
    assert dds(prior, still, GUIDANCE).abs().max() < 1e-4
    assert pds(prior, still, GUIDANCE).abs().max() < 1e-4


def test_csd_edit_evaluates_no_branch_twice(prior: Prior, views: Views) -> None:
    all_branches = guided(prior, views, views.latents, views.target_text, GUIDANCE) - guided(
        prior, views, views.source, views.empty_text, GUIDANCE
    )
    assert all_branches.square().mean() > 1e-3
    torch.testing.assert_close(
        csd_edit(prior, views, GUIDANCE), all_branches, rtol=0, atol=2e-5 * GUIDANCE.text
    )
    assert counted(prior, csd_edit, views) == (5 if prior.image_conditioned else 3)


def test_dreamcatalyst_is_csd_edit_weighed_by_the_noise_and_a_pull_to_the_source(tiny_prior: Prior) -> None:
    views = moved_views(tiny_prior)  # at t = 600 of 1000
    expected = (0.2 + 0.8 * 0.6 ** (1 / 2.718281828)) * csd_edit(tiny_prior, views, GUIDANCE)
    expected = expected + 0.075 * 2.718281828**0.6 * (views.latents - views.source)
    torch.testing.assert_close(dreamcatalyst(tiny_prior, views, GUIDANCE), expected, rtol=1e-5, atol=1e-5)
    still = replace(views, latents=views.source, target_text=views.empty_text)
    assert dreamcatalyst(tiny_prior, still, GUIDANCE).abs().max() < 1e-5
    assert counted(tiny_prior, dreamcatalyst, views) == 5


def test_ssd_compares_with_a_source_that_is_not_guided(tiny_prior: Prior) -> None:
    views = moved_views(tiny_prior)
    alpha = tiny_prior.schedule.alphas[views.t]
    noisy_source = tiny_prior.schedule.add_noise(views.source, views.noise, views.t)
    plain = tiny_prior.predict_noise(
        noisy_source, views.t, views.empty_text.expand(N, -1, -1), torch.zeros_like(views.condition)
    )
    expected = guided(tiny_prior, views, views.latents, views.target_text, GUIDANCE) - plain
    expected = expected + 0.075 * 2.718281828**0.6 * alpha * (views.latents - views.source)
    torch.testing.assert_close(ssd(tiny_prior, views, GUIDANCE), expected, rtol=0, atol=2e-4)
    assert counted(tiny_prior, ssd, views) == 4


def test_csd_edit_at_the_source_with_empty_prompt_is_zero(tiny_prior: Prior) -> None:
    views = moved_views(tiny_prior)
    still = replace(views, latents=views.source, target_text=views.empty_text)
    assert csd_edit(tiny_prior, still, GUIDANCE).abs().max() < 1e-5
    moved = replace(views, latents=views.source)
    assert csd_edit(tiny_prior, moved, GUIDANCE).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("t", "psi", "chi"), [(21, 1.61, 0.23), (101, 0.31, 0.12), (251, 0.10, 0.087), (501, 0.03, 0.082)]
)
def test_pds_weights_are_the_released_ones(tiny_prior: Prior, t: int, psi: float, chi: float) -> None:
    """The bundled prior has Stable Diffusion's noise schedule."""
    assert pds_coefficients(tiny_prior.schedule, t) == pytest.approx((psi, chi), abs=0.006)


def test_pds_is_the_difference_of_the_stochastic_latents(prior: Prior, views: Views) -> None:
    """The definition: z = (x_t' - mu(x_t, e)) / sigma_t, the noises at t and t' the same for both."""
    kept = prior.schedule.alphas.double() ** 2
    t, earlier = views.t, views.t - 2
    beta = 1 - kept[t] / kept[t - 1]
    noise = torch.randn(views.latents.shape, generator=torch.Generator().manual_seed(3))

    def stochastic(latents: Tensor, text: Tensor) -> Tensor:
        noisy = kept[t].sqrt() * latents + (1 - kept[t]).sqrt() * views.noise
        before = kept[earlier].sqrt() * latents + (1 - kept[earlier]).sqrt() * noise
        predicted = guided(prior, views, latents, text, GUIDANCE)
        clean = (noisy - (1 - kept[t]).sqrt() * predicted) / kept[t].sqrt()
        mean = kept[earlier].sqrt() * beta / (1 - kept[t]) * clean
        mean = mean + (1 - beta).sqrt() * (1 - kept[earlier]) / (1 - kept[t]) * noisy
        return (before - mean) / ((1 - kept[earlier]) / (1 - kept[t]) * beta).sqrt()

    expected = stochastic(views.latents, views.target_text) - stochastic(views.source, views.source_text)
    torch.testing.assert_close(pds(prior, views, GUIDANCE), expected.float(), rtol=0, atol=2e-4)
    assert counted(prior, pds, views) == (6 if prior.image_conditioned else 4)


@pytest.mark.parametrize("t", [0, 1])
def test_pds_is_finite_at_the_least_noise(tiny_prior: Prior, t: int) -> None:
    assert torch.tensor(pds_coefficients(tiny_prior.schedule, t)).isfinite().all()


@pytest.mark.parametrize("guidance, branch", [(Guidance(0, 0), 0), (Guidance(0, 1), 1), (Guidance(1, 1), 2)])
def test_guidance_scales_select_branches(guidance: Guidance, branch: int) -> None:
    branches = torch.randn(3, 2, 4)
    torch.testing.assert_close(guidance.combine(*branches), branches[branch])


@pytest.mark.parametrize("scale", [0, 1])
def test_the_text_scale_selects_the_branch_of_a_text_to_image_model(scale: int) -> None:
    branches = torch.randn(2, 2, 4)
    torch.testing.assert_close(Guidance(scale).combine_text(*branches), branches[scale])


# --------------------------------------------------------------------------------------------- the objective


@pytest.fixture(scope="module")
def edit_views(tiny_prior: Prior) -> Views:
    return moved_views(tiny_prior)


def run(config: ObjectiveConfig, prior: Prior, views: Views, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    return Objective(config, prior).gradient(
        views.latents, views.source, views.condition, prompt="make it night", generator=generator, **options
    )


FITTING = [
    ("csd-edit", "tiny_prior"), ("dreamcatalyst", "tiny_prior"), ("ssd", "tiny_prior"), ("sds", "tiny_prior"),
    ("sds", "text_to_image_prior"), ("dds", "text_to_image_prior"), ("pds", "text_to_image_prior"),
]  # fmt: skip


@pytest.mark.parametrize("weighting", ["one-minus-alpha", "uniform"])
@pytest.mark.parametrize("transport", ["svgd", "independent"])
@pytest.mark.parametrize(("residual", "kind"), FITTING)
def test_gradient_is_weight_times_transported_residual(
    request: pytest.FixtureRequest, residual, kind: str, transport, weighting
) -> None:
    prior = request.getfixturevalue(kind)
    views = moved_views(prior)
    config = ObjectiveConfig(residual=residual, transport=transport, weighting=weighting, image_guidance=2.0)
    result = run(config, prior, views, source_prompt="make it winter")

    generator = torch.Generator().manual_seed(0)
    t = int(torch.randint(200, 501, (), generator=generator))
    noise = torch.randn(views.latents.shape, generator=generator)
    scores = RESIDUALS[residual](prior, replace(views, t=t, noise=noise), Guidance(7.5, 2.0))
    particles = prior.schedule.alphas[t] * views.latents + prior.schedule.sigmas[t] * noise
    direction = svgd(scores, particles) if transport == "svgd" else scores
    assert result.timestep == result.statistics["timestep"] == t
    torch.testing.assert_close(result.gradient, weight(prior.schedule, t, weighting) * direction)


@pytest.mark.parametrize("residual", [name for name in RESIDUALS if name != "dvrf"])
def test_a_prior_that_cannot_be_asked_is_refused_at_once(prior: Prior, residual) -> None:
    kind = "tiny_prior" if prior.image_conditioned else "text_to_image_prior"
    if (residual, kind) in FITTING:
        Objective(ObjectiveConfig(residual=residual), prior)
        return
    got = "shown the source picture" if prior.image_conditioned else "text-to-image"
    with pytest.raises(InputError, match=f"the residual {residual} cannot ask(.|\n)*got: .*{got}"):
        Objective(ObjectiveConfig(residual=residual), prior)
    with pytest.raises(InputError):
        check_fit(residual, image_conditioned=prior.image_conditioned)


@pytest.mark.parametrize("residual", list(RESIDUALS))
def test_the_evaluations_stated_are_those_counted(prior: Prior, views: Views, residual) -> None:
    assert evaluations(residual, prior.guided_by) == counted(prior, RESIDUALS[residual], views)


def test_pds_is_not_for_flows() -> None:
    with pytest.raises(InputError, match="pds cannot ask a model of flow matching"):
        check_fit("pds", image_conditioned=False, flow=True)
    check_fit("dds", image_conditioned=False, flow=True)


def test_dvrf_is_for_flows_that_edit(tiny_prior: Prior) -> None:
    with pytest.raises(InputError, match="dvrf cannot ask a model without flow matching"):
        Objective(ObjectiveConfig(residual="dvrf"), tiny_prior)
    with pytest.raises(InputError, match="dvrf cannot ask a text-to-image model"):
        check_fit("dvrf", image_conditioned=False)
    check_fit("dvrf", image_conditioned=True)  # not known yet


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "falling"])
def test_eta_out_of_range(eta) -> None:
    with pytest.raises(InputError, match="eta of the residual dvrf"):
        ObjectiveConfig(eta=eta).check(particles=4, source_prompt="")


@pytest.mark.parametrize("residual", ["dds", "pds"])
def test_no_description_of_the_source(text_to_image_prior: Prior, residual) -> None:
    config = ObjectiveConfig(residual=residual)
    with pytest.raises(InputError, match=f"{residual} needs a description of the source"):
        config.check(particles=4, source_prompt=" ")
    with pytest.raises(InputError, match=f"{residual} needs a description of the source"):
        run(config, text_to_image_prior, moved_views(text_to_image_prior))


def test_statistics(tiny_prior: Prior, edit_views: Views) -> None:
    statistics = run(ObjectiveConfig(), tiny_prior, edit_views).statistics
    assert statistics["unet_evaluations"] == 5 * N
    assert statistics["kernel_offdiagonal_mean"] == pytest.approx(1 / (N + 1), rel=0.2)
    assert 0 < statistics["gradient_rms"] < statistics["residual_rms"]
    assert (
        "kernel_offdiagonal_mean"
        not in run(ObjectiveConfig(transport="independent"), tiny_prior, edit_views).statistics
    )


def test_the_gradient_carries_no_graph(tiny_prior: Prior, edit_views: Views) -> None:
    latents = edit_views.latents.clone().requires_grad_()
    result = run(ObjectiveConfig(), tiny_prior, replace(edit_views, latents=latents))
    assert not result.gradient.requires_grad
    (result.gradient * latents).sum().backward()
    torch.testing.assert_close(latents.grad, result.gradient)


def test_one_view_does_not_feel_the_transport(tiny_prior: Prior, edit_views: Views) -> None:
    one = Views(
        **{
            name: value[:1] if isinstance(value, Tensor) else value
            for name, value in vars(edit_views).items()
        }
    )
    with_svgd = run(ObjectiveConfig(), tiny_prior, one)
    assert torch.equal(
        with_svgd.gradient, run(ObjectiveConfig(transport="independent"), tiny_prior, one).gradient
    )
    assert with_svgd.statistics["kernel_offdiagonal_mean"] == 1


@pytest.mark.parametrize("structure", ["none", "cut"])
def test_views_follow_their_own_prompts(text_to_image_prior: Prior, structure) -> None:
    """A list of prompts is what every view would get by itself; equal ones are one prompt for all."""
    views = moved_views(text_to_image_prior)
    views = replace(views, **{name: getattr(views, name).repeat(1, 1, 2, 2) for name in VIEW_TENSORS})
    config = ObjectiveConfig(
        residual="sds", transport="independent", structure=StructureConfig(loss=structure, patch_sizes=(1,))
    )
    objective = Objective(config, text_to_image_prior)

    def gradient(prompt: str | list[str]) -> Tensor:
        return objective.gradient(
            views.latents,
            views.source,
            views.condition,
            prompt=prompt,
            generator=torch.Generator().manual_seed(0),
        ).gradient

    prompts = ["a bear, front view", "a bear, side view", "a bear, overhead view"]
    own = gradient(prompts)
    for index, prompt in enumerate(prompts):
        torch.testing.assert_close(own[index], gradient(prompt)[index], atol=1e-5, rtol=1e-4)
    assert (own[1] - gradient(prompts[0])[1]).abs().max() > 1e-4
    torch.testing.assert_close(gradient(prompts[:1] * N), gradient(prompts[0]))


def test_shared_noise_gives_equal_views_equal_gradients(tiny_prior: Prior, edit_views: Views) -> None:
    alike = replace(
        edit_views,
        latents=edit_views.latents[:1].expand(N, -1, -1, -1),
        source=edit_views.source[:1].expand(N, -1, -1, -1),
        condition=edit_views.condition[:1].expand(N, -1, -1, -1),
    )
    shared = run(ObjectiveConfig(noise="shared"), tiny_prior, alike).gradient
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=1e-4)
    own = run(ObjectiveConfig(noise="per-particle"), tiny_prior, alike).gradient
    assert (own - own[:1]).abs().max() > 1e-2


def test_same_seed_same_gradient(tiny_prior: Prior, edit_views: Views) -> None:
    first, again, other = (
        run(ObjectiveConfig(), tiny_prior, edit_views, seed=seed).gradient for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_annealed_timesteps_follow_the_step(tiny_prior: Prior, edit_views: Views) -> None:
    config = ObjectiveConfig(timesteps="annealed", min_timestep=0.1, max_timestep=0.9)
    timesteps = [run(config, tiny_prior, edit_views, step=step, max_steps=3).timestep for step in range(3)]
    assert timesteps == [899, 500, 100]


def test_non_finite_residuals_are_reported(tiny_prior: Prior, edit_views: Views) -> None:
    latents = edit_views.latents.clone()
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteResidual, match="timestep"):
        run(ObjectiveConfig(), tiny_prior, replace(edit_views, latents=latents))


def test_impossible_timesteps_are_refused_at_once(tiny_prior: Prior) -> None:
    with pytest.raises(InputError):
        Objective(ObjectiveConfig(min_timestep=0.6, max_timestep=0.5), tiny_prior)
