"""SVGD against the formula written out in loops, and in its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from memory import allocations

from csd_nerf.distillation import independent, stein_kernel, svgd
from csd_nerf.errors import InputError

SHAPE = (4, 6, 5)


def draw(count: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Scores and particles; the particles lie far from the origin, where differences lose digits."""
    generator = torch.Generator().manual_seed(seed)
    scores, particles = torch.randn(2, count, *shape, generator=generator, dtype=torch.float64)
    return scores.to(dtype), (particles + 3).to(dtype)


def reference(
    scores: torch.Tensor, particles: torch.Tensor, bandwidth: str | float, normalize: bool, kind: str = "rbf"
) -> np.ndarray:
    """The double loop of the definition."""
    s, x = scores.flatten(1).numpy(), particles.flatten(1).numpy()
    count = len(x)
    d2 = np.array([[((x[i] - x[j]) ** 2).sum() for j in range(count)] for i in range(count)])
    if bandwidth == "median":
        gamma = math.log(count + 1) / np.median([d2[i, j] for i in range(count) for j in range(i)])
    elif bandwidth == "paper":
        gamma = math.log(count + 1) / sorted(d2.flatten())[(count * count - 1) // 2]
    else:
        gamma = 1 / bandwidth
    kernel = np.exp(-gamma * d2) if kind == "rbf" else 1 / np.sqrt(1 + gamma * d2)
    slope = gamma * kernel if kind == "rbf" else gamma / 2 / (1 + gamma * d2) ** 1.5  # -dK / d(d2)
    direction = np.zeros_like(s)
    for i in range(count):
        for j in range(count):
            direction[i] += kernel[i, j] * s[j] - 2 * slope[i, j] * (x[i] - x[j])
        direction[i] /= kernel[i].sum() if normalize else count
    return direction.reshape(scores.shape)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bandwidth", ["median", "paper", 150.0])
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_matches_the_loops(count: int, kernel, bandwidth: str | float, normalize: bool) -> None:
    scores, particles = draw(count)
    direction = svgd(scores, particles, bandwidth=bandwidth, normalize=normalize, kernel=kernel)
    expected = reference(scores, particles, bandwidth, normalize, kernel)
    np.testing.assert_allclose(direction, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_repulsion_is_the_derivative_of_the_kernel(kernel) -> None:
    _, particles = draw(3)
    distance = 150.0  # a fixed one: the median would depend on the particles too
    moving = particles.clone().requires_grad_()
    similarity, repulsion = stein_kernel(moving, distance, kernel)
    for i, j in ((0, 1), (2, 0)):
        (gradient,) = torch.autograd.grad(similarity[i, j], moving, retain_graph=True)
        torch.testing.assert_close(gradient[j], repulsion[i, j].detach() * (particles[i] - particles[j]))


@pytest.mark.parametrize("normalize", [True, False])
def test_two_particles(normalize: bool) -> None:
    scores, particles = draw(2)
    direction = svgd(scores, particles, normalize=normalize)
    expected = reference(scores, particles, "median", normalize)
    np.testing.assert_allclose(direction, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bandwidth", ["median", 2.0])
def test_one_particle_is_exactly_independent(bandwidth, normalize: bool, dtype: torch.dtype) -> None:
    scores, particles = draw(1, dtype=dtype)
    direction = svgd(scores, particles, bandwidth=bandwidth, normalize=normalize)
    assert direction.dtype == dtype
    assert torch.equal(direction, independent(scores, particles))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_coinciding_particles_get_the_mean_score(count: int, normalize: bool) -> None:
    scores, particles = draw(count)
    direction = svgd(scores, particles[:1].expand_as(particles), normalize=normalize)
    torch.testing.assert_close(direction, scores.mean(0, keepdim=True).expand_as(scores))


def test_particles_of_which_most_coincide_stay_finite() -> None:
    scores, particles = draw(5)
    particles[1:] = particles[1]
    assert svgd(scores, particles).isfinite().all()


def test_permuting_the_particles_permutes_the_directions() -> None:
    scores, particles = draw(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        svgd(scores[order], particles[order]), svgd(scores, particles)[order], rtol=0, atol=1e-12
    )


def test_repulsion_pushes_apart_under_descent() -> None:
    _, particles = draw(4)
    moved = particles - 0.1 * svgd(torch.zeros_like(particles), particles)
    assert (torch.pdist(moved.flatten(1)) > torch.pdist(particles.flatten(1))).all()


def test_in_high_dimension_a_particle_follows_half_its_own_score_and_half_the_mean() -> None:
    scores, particles = draw(8, (4, 64, 64))
    kernel, _ = stein_kernel(particles)
    assert kernel.diagonal().eq(1).all()
    np.testing.assert_allclose(kernel[0, 1:], 1 / 9, rtol=0.1)
    direction = svgd(scores, particles)
    torch.testing.assert_close(direction, (scores + scores.mean(0)) / 2, rtol=0, atol=0.05)


def test_half_precision_particles_lose_nothing_further() -> None:
    scores, particles = draw(4, dtype=torch.bfloat16)
    exact = svgd(scores.double(), particles.double())
    torch.testing.assert_close(svgd(scores, particles), exact.bfloat16())


def test_autocast_does_not_touch_it() -> None:
    scores, particles = draw(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = svgd(scores, particles)
    assert torch.equal(under_autocast, svgd(scores, particles))


def test_memory_is_linear_in_the_particles() -> None:
    scores, particles = draw(16, (4, 64, 64), dtype=torch.float32)
    changes = allocations(lambda: svgd(scores, particles))
    float64_copy = particles.numel() * 8
    assert changes.max() == float64_copy  # the (N, N, c, h, w) differences would be 16 times that
    assert changes.cumsum().max() < 8 * float64_copy


@pytest.mark.parametrize("count", [1, 2])
def test_the_papers_bandwidth_needs_three_particles(count: int) -> None:
    with pytest.raises(InputError, match=r"paper(.|\n)*at least 3"):
        svgd(*draw(count), bandwidth="paper")


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf, "mean"])
def test_impossible_bandwidths_are_refused(bandwidth) -> None:
    with pytest.raises(InputError, match="unknown SVGD bandwidth"):
        svgd(*draw(3), bandwidth=bandwidth)


def test_particles_that_hardly_differ_are_not_torn_apart() -> None:
    """The median heuristic alone would repel them the more, the closer they are."""
    scores, particles = draw(6)
    still = particles[:1] + 1e-4 * particles
    moved = svgd(torch.zeros_like(scores), still)
    assert moved.abs().max() < 1e-3
