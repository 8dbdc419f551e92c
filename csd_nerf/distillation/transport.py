"""How the scores of N particles are combined into N descent directions.

The particles of Collaborative Score Distillation are the N *noisy* latents of one step. `independent` leaves
every particle its own score, which is plain score distillation; `svgd` lets the particles share their scores
and keeps them apart, which is what makes the views of one scene agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import check

Bandwidth = Literal["median", "paper"] | float
Kernel = Literal["rbf", "imq"]

LEAST_DIFFERENCE = 0.1
"""Distance of two particles, as a share of their own length, below which they need not be kept apart. Noise
of their own makes particles differ by more."""


def independent(
    residuals: Float[Tensor, "n c h w"],
    particles: Float[Tensor, "n c h w"],
) -> Float[Tensor, "n c h w"]:
    """Every particle follows its own score: `g_i = s_i` (score distillation without collaboration).

    Args:
        residuals: scores `s_i`.
        particles: not looked at; here so that all transports have one signature.
    """
    return residuals


def svgd(
    residuals: Float[Tensor, "n c h w"],
    particles: Float[Tensor, "n c h w"],
    *,
    bandwidth: Bandwidth = "median",
    normalize: bool = True,
    kernel: Kernel = "rbf",
    feature: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "n c h w"]:
    r"""Stein variational descent (Liu and Wang, 1608.04471) as CSD applies it (Kim et al., 2307.04787).

    With a kernel `K_ij` whose derivative with respect to `x_j` is `R_ij (x_i - x_j)`, see `stein_kernel`,

        g_i = a_i [ sum_j K_ij s_j  -  sum_j R_ij (x_i - x_j) ]

    For the published Gaussian kernel `R_ij = 2 gamma K_ij`. The factor `a_i` is 1 / N as published
    (`normalize=False`), or `1 / sum_j K_ij` so that the weights of each particle sum to one
    (`normalize=True`). The first term shares the scores; under descent the second pushes the particles apart.
    A single particle gets exactly its own score, as from `independent`; particles that coincide get the mean
    of their scores.

    In latents of thousands of dimensions all distances are about alike, so the median heuristic makes K about
    1 / (N + 1) off the diagonal. The published step is then about `(s_i + mean_j s_j) / (N + 1)`, which
    shrinks as particles are added; the normalised one about `(s_i + mean_j s_j) / 2`, whatever their number.

    With a feature `f` the kernel is one of `f(x_i)`, `d2_ij = |f(x_i) - f(x_j)|^2`, and with the Jacobian
    `J_i` of f at `x_i`

        g_i = a_i [ sum_j K_ij s_j  -  J_i^T sum_j R_ij (f(x_i) - f(x_j)) ]

    The second term is the derivative with respect to the first argument, `sum_j dK_ij / dx_i`, as in CSD's
    released code. Stein's operator has `- dK_ij / dx_j`, which is the same as long as the kernel depends on
    `x_i - x_j` alone. With a feature it would carry over to view i where view j differs, whereas this moves
    every view's own feature away from the others'. In the limit of f(x) = x both are the formula above.

    Args:
        residuals: scores `s_i`, of any floating dtype.
        particles: noisy latents `x_i`; with a feature of pictures, clean ones.
        bandwidth: see `stein_kernel`.
        normalize: see above.
        kernel: see `stein_kernel`.
        feature: f, from (n, c, h, w) to (n, ...), differentiable, each row of its own particle.

    Returns:
        The direction for descent, before the weight w(t), in the dtype of `residuals`.

    Raises:
        InputError: a bandwidth that cannot be used, see `stein_kernel`.
    """
    features, pull_back = described(particles, feature)
    matrices = stein_kernel(features, bandwidth, kernel)
    return stein_direction(residuals, features, *matrices, normalize, pull_back)


def described(
    particles: Float[Tensor, "n c h w"], feature: Callable[[Tensor], Tensor] | None
) -> tuple[Float[Tensor, "n ..."], Callable[[Tensor], Tensor]]:
    """The features of particles, and `v -> J^T v` with the Jacobian of the feature, row by row.

    Without a feature both are the identity. The function can be called once: it uses the graph up.
    """
    if feature is None:
        return particles, lambda vectors: vectors
    with torch.enable_grad(), torch.autocast(particles.device.type, enabled=False):
        variable = particles.detach().requires_grad_()
        features = feature(variable)

    def pull_back(vectors: Tensor) -> Tensor:
        return torch.autograd.grad(features, variable, vectors.to(features.dtype))[0]

    return features.detach(), pull_back


def stein_direction(
    residuals: Float[Tensor, "n c h w"],
    features: Float[Tensor, "n ..."],
    similarity: Float[Tensor, "n n"],
    repulsion: Float[Tensor, "n n"],
    normalize: bool,
    pull_back: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n c h w"]:
    """The direction of `svgd` for given kernel matrices K and R, see `stein_kernel` and `described`."""
    row = similarity.sum(1, keepdim=True) if normalize else len(similarity)
    similarity, repulsion = similarity / row, repulsion / row

    scores = residuals.flatten(1).double()  # (N, D)
    x = features.flatten(1).double()
    x = x - x.mean(0)  # leaves the differences as they are and spares their digits below
    # sum_j R_ij (x_i - x_j), without the (N, N, D) differences
    repelled = x * repulsion.sum(1, keepdim=True) - repulsion @ x
    repelled = pull_back(repelled.view_as(features)).flatten(1).double()
    return (similarity @ scores - repelled).view_as(residuals).to(residuals.dtype)


def stein_kernel(
    particles: Float[Tensor, "n ..."], bandwidth: Bandwidth = "median", kernel: Kernel = "rbf"
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    r"""A kernel of flattened particles, `d2_ij = |x_i - x_j|^2`, and the weights `R_ij` of its derivative.

    Computed in float64 whatever the dtype of the particles: for so few of them it costs nothing, and neither
    autocast nor TF32 gets at it.

    Args:
        particles: `x_i`, or features of them.
        bandwidth:
            "median": `gamma = ln(N + 1) / median_{i<j} d2_ij`, the median heuristic over pairs of different
            particles. Particles nearer than `LEAST_DIFFERENCE` of their root mean square length have the
            bandwidth of that distance, and so K near one and next to no repulsion, which grows as
            1 / |x_i - x_j| otherwise and would tear the frames of a still clip apart for the sake of their
            rounding errors.
            "paper": the same with the median over all N x N entries, zero diagonal included, the lower of the
            two middle ones, as in CSD's released code. It needs three particles.
            a number h > 0: `gamma = 1 / h`, h in units of d2.
        kernel:
            "rbf": `K = exp(-gamma d2)`, `R = 2 gamma K`, as published for CSD.
            "imq": the inverse multiquadric `K = (1 + gamma d2)^(-1/2)`, `R = gamma K^3` (Gorham and Mackey,
            1703.01717). It falls off more slowly, so that far views still share: at the median distance
            1 / sqrt(1 + ln(N + 1)) instead of 1 / (N + 1).

    Returns:
        K and R with `dK_ij / dx_j = R_ij (x_i - x_j)`.

    Raises:
        InputError: "paper" with fewer than three particles, or a number that is not positive and finite.
    """
    x = particles.flatten(1).double()  # (N, D)
    # cdist's faster form through a matrix product loses the distances between close particles.
    d2 = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()  # (N, N)
    gamma = _gamma(d2, bandwidth, x.square().sum(1).mean().item())
    if kernel == "imq":
        similarity = (1 + gamma * d2).rsqrt()
        return similarity, gamma * similarity**3
    similarity = torch.exp(-gamma * d2)
    return similarity, 2 * gamma * similarity


def check_bandwidth(bandwidth: Bandwidth, count: int) -> None:
    """See that a bandwidth can be used for `count` particles.

    Raises:
        InputError: "paper" with fewer than three particles, or a number that is not positive and finite.
    """
    check(
        bandwidth != "paper" or count >= 3,
        "the SVGD bandwidth 'paper' is undefined for so few particles",
        expected="at least 3",
        got=count,
        hint="use the bandwidth 'median', or more particles",
    )
    is_number = isinstance(bandwidth, (int, float)) and math.isfinite(bandwidth) and bandwidth > 0
    check(
        bandwidth in ("median", "paper") or is_number,
        "unknown SVGD bandwidth",
        expected="'median', 'paper' or a positive number",
        got=repr(bandwidth),
        hint="'median' suits any number of particles",
    )


def _gamma(d2: Float[Tensor, "n n"], bandwidth: Bandwidth, squared_length: float) -> float:
    count = len(d2)
    check_bandwidth(bandwidth, count)
    if isinstance(bandwidth, (int, float)):
        return 1 / bandwidth
    if count == 1:
        return 0.0
    if bandwidth == "paper":
        median = d2.flatten().median().item()  # torch.median is the lower middle
    else:
        i, j = torch.triu_indices(count, count, offset=1, device=d2.device)
        median = max(d2[i, j].quantile(0.5).item(), LEAST_DIFFERENCE**2 * squared_length)
    return math.log(count + 1) / median if median > 0 else 0.0
