"""SVGD on features of the particles, and the features of pictures that it is offered."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csd_nerf.distillation import Objective, ObjectiveConfig, independent, svgd
from csd_nerf.distillation.features import LpipsFeatures, colours, load_feature
from csd_nerf.errors import InputError
from csd_nerf.priors import Prior

SHAPE = (4, 6, 5)
MIXING = torch.randn(7, math.prod(SHAPE), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def bent(particles: Tensor) -> Tensor:
    """A feature with another Jacobian at every particle."""
    return torch.tanh(0.1 * particles.flatten(1) @ MIXING.mT) + 0.1 * particles.flatten(1)[:, :7] ** 2


def draw(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores, particles = torch.randn(2, count, *SHAPE, generator=generator, dtype=torch.float64)
    return scores.to(dtype), particles.to(dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["rbf", "imq"])
@pytest.mark.parametrize("count", [2, 5])
def test_matches_the_definition_by_autograd(count: int, kind, normalize: bool) -> None:
    """`g_i = a_i [ sum_j K(x_i, x_j) s_j + sum_j dK(x_i, x_j) / dx_i ]`, written in loops."""
    scores, particles = draw(count)
    places = [bent(particle[None])[0] for particle in particles]
    pairs = [(places[i] - places[j]).square().sum().item() for i in range(count) for j in range(i)]
    gamma = math.log(count + 1) / np.median(pairs)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        d2 = (bent(first[None]) - bent(second[None])).square().sum()
        return torch.exp(-gamma * d2) if kind == "rbf" else (1 + gamma * d2).rsqrt()

    expected = torch.zeros_like(scores)
    for i in range(count):
        row = 0.0
        for j in range(count):
            first = particles[i].clone().requires_grad_()
            value = kernel(first, particles[j])
            (slope,) = torch.autograd.grad(value, first)
            expected[i] += value.detach() * scores[j] + slope
            row += value.item()
        expected[i] /= row if normalize else count
    direction = svgd(scores, particles, kernel=kind, normalize=normalize, feature=bent)
    torch.testing.assert_close(direction, expected, rtol=0, atol=1e-10)
    assert (svgd(scores, particles, kernel=kind, normalize=normalize) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("bandwidth", ["median", "paper", 40.0])
@pytest.mark.parametrize("kind", ["rbf", "imq"])
def test_the_identity_is_plain_svgd(kind, bandwidth) -> None:
    scores, particles = draw(4)
    with torch.no_grad():  # as the objective calls it
        direction = svgd(scores, particles, kernel=kind, bandwidth=bandwidth, feature=lambda x: 1 * x)
    plain = svgd(scores, particles, kernel=kind, bandwidth=bandwidth)
    torch.testing.assert_close(direction, plain, rtol=0, atol=1e-12)


def test_one_particle_is_exactly_independent() -> None:
    scores, particles = draw(1)
    assert torch.equal(svgd(scores, particles, feature=bent), independent(scores, particles))


def test_permuting_the_particles_permutes_the_directions() -> None:
    scores, particles = draw(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = svgd(scores[order], particles[order], feature=bent)
    torch.testing.assert_close(shuffled, svgd(scores, particles, feature=bent)[order], rtol=0, atol=1e-12)


def test_features_are_pushed_apart_under_descent() -> None:
    _, particles = draw(4)
    moved = particles - 0.05 * svgd(torch.zeros_like(particles), particles, feature=bent)
    before, after = torch.pdist(bent(particles)), torch.pdist(bent(moved))
    assert after.sum() > before.sum() and after.min() > before.min()


def test_particles_that_look_alike_share_more_than_others() -> None:
    """Two that coincide in the feature, however far apart, and one that does not."""
    scores, particles = draw(3)
    seen = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    direction = svgd(
        scores, particles, bandwidth=0.01, feature=lambda x: 0 * x.flatten(1)[:, :1] + seen[:, None]
    )
    together = (scores[0] + scores[1]) / 2
    torch.testing.assert_close(direction, torch.stack([together, together, scores[2]]))


# ------------------------------------------------------------------------------------------ pictures


def test_colours_are_means_of_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(3, 3, 16, 16, generator=generator)
    features = colours(small.repeat_interleave(2, 2).repeat_interleave(3, 3))
    difference = (features[0] - features[2]).square().sum()
    torch.testing.assert_close(difference, (small[0] - small[2]).square().mean())


def test_distances_of_lpips_features_are_lpips(alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips

    monkeypatch.setenv("TORCH_HOME", str(alexnet))
    describe = LpipsFeatures("cpu")
    pictures = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    pictures[1] = 0.5 * pictures[1] + 0.5 * pictures[0]
    features = describe(pictures)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        expected = lpips(pictures[i : i + 1], pictures[j : j + 1], net_type="alex", normalize=True)
        ours = (features[i] - features[j]).square().sum()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    large, narrow = torch.rand(1, 3, 128, 256), torch.rand(1, 3, 96, 32)
    assert describe(large).shape == describe(torch.rand(1, 3, 64, 128)).shape
    assert describe(narrow).isfinite().all()


def test_lpips_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError, match="alexnet(.|\n)*distance colours"):
        LpipsFeatures("cpu")


def test_the_feature_of_latents_is_that_of_their_pictures(text_to_image_prior: Prior, generator) -> None:
    feature = load_feature("colours", text_to_image_prior)
    assert feature is not None and load_feature("latents", text_to_image_prior) is None
    latents = (
        0.3 * torch.randn(2, text_to_image_prior.latent_channels, 8, 12, generator=generator)
    ).requires_grad_()
    features = feature(latents)
    torch.testing.assert_close(features, colours(text_to_image_prior.decode(latents)))

    direction, probe = (torch.randn(x.shape, generator=generator) for x in (latents, features))
    (gradient,) = torch.autograd.grad(features, latents, probe)
    with torch.no_grad():
        ahead, behind = (feature(latents + sign * 1e-2 * direction) for sign in (1, -1))
    slope = ((ahead - behind) * probe).sum() / 2e-2
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("distance", ["colours", "lpips"])
def test_the_objective_compares_pictures(
    request: pytest.FixtureRequest, text_to_image_prior: Prior, monkeypatch, distance
) -> None:
    prior = text_to_image_prior
    if distance == "lpips":
        monkeypatch.setenv("TORCH_HOME", str(request.getfixturevalue("alexnet")))
    latents = 0.5 * torch.randn(3, prior.latent_channels, 16, 24, generator=torch.Generator().manual_seed(3))

    def step(**changes):
        objective = Objective(ObjectiveConfig(residual="sds", weighting="uniform", **changes), prior)
        return objective.gradient(
            latents,
            latents,
            latents[:, :0],
            prompt="a bear",
            generator=torch.Generator().manual_seed(0),
        )

    residuals = step(transport="independent").gradient
    distilled = step(distance=distance)
    expected = svgd(residuals, latents, feature=load_feature(distance, prior))
    torch.testing.assert_close(distilled.gradient, expected, rtol=1e-4, atol=1e-5)
    assert (distilled.gradient - step().gradient).abs().max() > 1e-3
    assert 0 < distilled.statistics["kernel_offdiagonal_mean"] < 1
    assert not distilled.gradient.requires_grad
