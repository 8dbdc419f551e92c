"""What nerfacto does along each ray, as functions of tensors on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.cpu_field import ray_kernels as kernels
from csd_nerf.threads import beside_each_other, runs

_RAYS_OF_A_RUN = 256
"""At least; of fewer a second thread would not be worth waking."""


def positions(
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    starts: Float[Tensor, "r s"],
    ends: Float[Tensor, "r s"],
) -> Float[Tensor, "r s 3"]:
    """Middles of samples in the scene, `Frustums.get_positions`; without a gradient.

    Args:
        origins: of the rays.
        directions: of the rays.
        starts: of S samples on each, distances.
        ends: of the samples.
    """
    result = torch.empty(*starts.shape, 3)
    arrays = [tensor.contiguous().numpy() for tensor in (origins, directions, starts, ends)]
    _of_rays(lambda rays: kernels.positions(rays, *arrays, result.numpy()), len(starts))
    return result


def piecewise_distances(
    edges: Float[Tensor, "r s"], near: Float[Tensor, " r"], far: Float[Tensor, " r"]
) -> Float[Tensor, "r s"]:
    """Distances of edges of samples that `UniformLinDispPiecewiseSampler` has spread.

    Args:
        edges: 0..1 from near to far.
        near: of each ray, 0..1 in the sampler's spacing.
        far: likewise.
    """
    result = torch.empty(edges.shape)
    arrays = [tensor.contiguous().numpy() for tensor in (edges, near, far)]
    _of_rays(lambda rays: kernels.piecewise_distances(rays, *arrays, result.numpy()), len(edges))
    return result


def weights(densities: Float[Tensor, "r s"], lengths: Float[Tensor, "r s"]) -> Float[Tensor, "r s"]:
    """Share of each sample in its ray's colour; `RaySamples.get_weights`, with a gradient to the densities.

    Args:
        densities: of S samples on each ray, one behind the other.
        lengths: of the samples.
    """
    return _Weights.apply(densities, lengths)


def resample(
    edges: Float[Tensor, "r s1"],
    shares: Float[Tensor, "r s"],
    at: Float[Tensor, "r t1"],
    *,
    power: float,
    padding: float,
) -> Float[Tensor, "r t1"]:
    """Edges of the next T samples, more where the weights of S are large: `PDFSampler`, without a gradient.

    Args:
        edges: S + 1 of each ray.
        shares: the weights, 0 or more.
        at: T + 1 quantiles (0..1), rising.
        power: of the weights; below 1 they tell less.
        padding: added to each.
    """
    result = torch.empty_like(at)
    arrays = [tensor.detach().contiguous().numpy() for tensor in (edges, shares)]
    _of_rays(
        lambda rays: kernels.resample(
            rays, *arrays, np.float32(power), np.float32(padding), at.numpy(), result.numpy()
        ),
        len(at),
    )
    return result


def interlevel_loss(
    edges: Float[Tensor, "r s1"],
    shares: Float[Tensor, "r s"],
    outer_edges: Float[Tensor, "r p1"],
    outer_shares: Float[Tensor, "r p"],
) -> Tensor:
    """Nerfacto's proposal loss of one proposal, scalar, with a gradient to `outer_shares` alone.

    Mip-NeRF 360 (2111.12077), equation 13, as a mean over rays and samples.

    Args:
        edges: of the field's samples.
        shares: the field's weights.
        outer_edges: of the proposal's samples.
        outer_shares: its weights.
    """
    return _Interlevel.apply(edges.detach(), shares.detach(), outer_edges.detach(), outer_shares)


def distortion_loss(edges: Float[Tensor, "r s1"], shares: Float[Tensor, "r s"]) -> Tensor:
    """Nerfacto's distortion loss, scalar, with a gradient to the weights.

    Mip-NeRF 360 (2111.12077), equation 15, as a mean over rays.

    Args:
        edges: of the samples.
        shares: their weights.
    """
    return _Distortion.apply(edges.detach(), shares)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, densities: Tensor, lengths: Tensor) -> Tensor:
        densities, lengths = densities.contiguous(), lengths.contiguous()
        shares = torch.empty_like(densities)
        arrays = [tensor.numpy() for tensor in (densities.detach(), lengths.detach(), shares)]
        _of_rays(lambda rays: kernels.weights(rays, *arrays), len(shares))
        ctx.save_for_backward(densities, lengths, shares)
        return shares

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors  # once: under checkpointing it can be read only once
        result = torch.empty_like(saved[0])
        tensors = [*saved, gradients[0].contiguous(), result]
        arrays = [tensor.detach().numpy() for tensor in tensors]
        _of_rays(lambda rays: kernels.weights_backward(rays, *arrays), len(result))
        return result, None


class _Interlevel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, shares: Tensor, outer_edges: Tensor, outer_shares: Tensor) -> Tensor:
        gradient = torch.zeros_like(outer_shares)
        arrays = [
            tensor.contiguous().numpy() for tensor in (edges, shares, outer_edges, outer_shares.detach())
        ]
        total = _sum_of_rays(lambda rays: kernels.interlevel(rays, *arrays, gradient.numpy()), len(shares))
        ctx.save_for_backward(gradient / shares.numel())
        return shares.new_tensor(total / shares.numel())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        return None, None, None, ctx.saved_tensors[0] * gradients[0]


class _Distortion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, shares: Tensor) -> Tensor:
        gradient = torch.empty(shares.shape)
        arrays = [tensor.contiguous().numpy() for tensor in (edges, shares.detach())]
        total = _sum_of_rays(lambda rays: kernels.distortion(rays, *arrays, gradient.numpy()), len(shares))
        ctx.save_for_backward(gradient / len(shares))
        return shares.new_tensor(total / len(shares))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.saved_tensors[0] * gradients[0]


def _of_rays(work: Any, rays: int) -> None:
    beside_each_other(lambda _, part: work(part), runs(rays, _RAYS_OF_A_RUN))


def _sum_of_rays(work: Any, rays: int) -> float:
    parts = runs(rays, _RAYS_OF_A_RUN)
    sums = [0.0] * len(parts)

    def one(lane: int, part: tuple[int, int]) -> None:
        sums[lane] = work(part)

    beside_each_other(one, parts)
    return sum(sums)
