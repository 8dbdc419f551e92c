"""Nerfacto's rounds of samples along rays, and its regularisers, on a CPU by compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.model_components import losses
from nerfstudio.model_components.ray_samplers import (
    PDFSampler,
    ProposalNetworkSampler,
    UniformLinDispPiecewiseSampler,
)
from torch import Tensor

from csd_nerf.cpu_field import along_rays


class CpuProposalSampler(ProposalNetworkSampler):
    """Nerfstudio's sampler; draws the same random numbers and gives the same samples."""

    def generate_ray_samples(
        self,
        ray_bundle: RayBundle | None = None,
        density_fns: list[Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[RaySamples, list[Tensor], list[RaySamples]]:
        """Samples (R, S) for the field; weights (R, S_i, 1) and samples of every proposal."""
        assert ray_bundle is not None and density_fns is not None
        if not _suits(ray_bundle):
            return super().generate_ray_samples(ray_bundle, density_fns)
        trained = self._steps_since_update > self.update_sched(self._step) or self._step < 10
        first, *others = self.num_proposal_samples_per_ray[: self.num_proposal_network_iterations]
        samples: RaySamples = self._first(ray_bundle, first)
        weights_of_all: list[Tensor] = []
        samples_of_all: list[RaySamples] = []
        for density_fn, count in zip(density_fns, [*others, self.num_nerf_samples_per_ray], strict=True):
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                weights = samples.get_weights(density_fn(samples.frustums.get_positions()))
            weights_of_all.append(weights)
            samples_of_all.append(samples)
            samples = self._next(ray_bundle, samples, weights, count)
        if trained:
            self._steps_since_update = 0
        return samples, weights_of_all, samples_of_all

    def _first(self, rays: RayBundle, count: int) -> CpuRaySamples:
        """Samples before anything is known of a ray, as `SpacedSampler` spreads them."""
        sampler: Any = self.initial_sampler
        edges = torch.linspace(0.0, 1.0, count + 1).expand(len(rays), -1)
        if sampler.train_stratified and sampler.training:
            middles = (edges[:, 1:] + edges[:, :-1]) / 2
            lower, upper = torch.cat([edges[:, :1], middles], 1), torch.cat([middles, edges[:, -1:]], 1)
            edges = lower + (upper - lower) * torch.rand(len(rays), 1 if sampler.single_jitter else count + 1)
        near, far = (sampler.spacing_fn(bound) for bound in (rays.nears, rays.fars))
        if isinstance(sampler, UniformLinDispPiecewiseSampler):
            return _samples(rays, edges, lambda at: along_rays.piecewise_distances(at, near[:, 0], far[:, 0]))
        return _samples(rays, edges, lambda at: sampler.spacing_fn_inv(at * far + (1 - at) * near))

    def _next(self, rays: RayBundle, samples: RaySamples, weights: Tensor, count: int) -> CpuRaySamples:
        """Samples where the weights are, as `PDFSampler` spreads them."""
        sampler: PDFSampler = self.pdf_sampler
        edges = along_rays.resample(
            spacing_edges(samples),
            weights[..., 0],
            _quantiles(sampler, len(weights), count),
            power=self._anneal,
            padding=sampler.histogram_padding,
        )
        assert samples.spacing_to_euclidean_fn is not None
        return _samples(rays, edges, samples.spacing_to_euclidean_fn)


class CpuFrustums(Frustums):
    """Nerfstudio's; its tensors are of one shape already and need not be broadcast, which takes long."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shape", self.starts.shape[:-1])

    def get_positions(self) -> Tensor:
        """Middles (..., 3) of the samples, in the scene."""
        of_rays = self.origins.dim() == 3 and self.origins.stride(1) == self.directions.stride(1) == 0
        if not of_rays or self.origins.requires_grad or self.directions.requires_grad:
            return super().get_positions()
        return along_rays.positions(
            self.origins[:, 0], self.directions[:, 0], self.starts[..., 0], self.ends[..., 0]
        )


class CpuRaySamples(RaySamples):
    """Nerfstudio's, of one shape already, with compiled weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shape", self.frustums.shape)

    def get_weights(self, densities: Tensor) -> Tensor:
        """Weights (R, S, 1) of densities (R, S, 1)."""
        assert self.deltas is not None
        return along_rays.weights(densities[..., 0], self.deltas[..., 0])[..., None]


def interlevel_loss(weights_list: Sequence[Tensor], ray_samples_list: Sequence[RaySamples]) -> Tensor:
    """Nerfacto's proposal loss, scalar.

    Args:
        weights_list: (R, S_i, 1), of the proposals, and last of the field.
        ray_samples_list: theirs.
    """
    *proposals, samples = ray_samples_list
    if not isinstance(samples, CpuRaySamples):
        return losses.interlevel_loss(weights_list, ray_samples_list)
    *outer_weights, weights = weights_list
    edges = spacing_edges(samples)
    parts = [
        along_rays.interlevel_loss(edges, weights[..., 0], spacing_edges(outer), outer_weight[..., 0])
        for outer, outer_weight in zip(proposals, outer_weights, strict=True)
    ]
    return torch.stack(parts).sum()


def distortion_loss(weights_list: Sequence[Tensor], ray_samples_list: Sequence[RaySamples]) -> Tensor:
    """Nerfacto's distortion loss, scalar; arguments as of `interlevel_loss`."""
    samples = ray_samples_list[-1]
    if not isinstance(samples, CpuRaySamples):
        return losses.distortion_loss(weights_list, ray_samples_list)
    return along_rays.distortion_loss(spacing_edges(samples), weights_list[-1][..., 0])


def spacing_edges(samples: RaySamples) -> Tensor:
    """Where samples begin and end, (R, S + 1), 0..1 in the spacing of their sampler."""
    assert samples.spacing_starts is not None and samples.spacing_ends is not None
    return torch.cat([samples.spacing_starts[..., 0], samples.spacing_ends[:, -1]], dim=1)


def _quantiles(sampler: PDFSampler, rays: int, count: int) -> Tensor:
    """(R, count + 1), as the sampler's own."""
    edges = count + 1
    even = torch.linspace(0.0, 1.0 - 1.0 / edges, edges)
    if not (sampler.train_stratified and sampler.training):
        return (even + 1.0 / (2 * edges)).expand(rays, edges).contiguous()
    return even + torch.rand(rays, 1 if sampler.single_jitter else edges) / edges


def _samples(rays: RayBundle, edges: Tensor, along: Callable[[Tensor], Tensor]) -> CpuRaySamples:
    """`RayBundle.get_ray_samples` between edges (R, S + 1), which `along` turns into distances."""
    distances = along(edges)
    starts, ends = distances[:, :-1, None], distances[:, 1:, None]

    def of_samples(of_rays: Any) -> Any:
        if not isinstance(of_rays, Tensor):  # nothing; or, of a viewer's camera, its number
            return of_rays
        return of_rays[:, None].expand(-1, starts.shape[1], -1)

    return CpuRaySamples(
        frustums=CpuFrustums(
            origins=of_samples(rays.origins),
            directions=of_samples(rays.directions),
            starts=starts,
            ends=ends,
            pixel_area=of_samples(rays.pixel_area),
        ),
        camera_indices=of_samples(rays.camera_indices),
        deltas=ends - starts,
        spacing_starts=edges[:, :-1, None],
        spacing_ends=edges[:, 1:, None],
        spacing_to_euclidean_fn=along,
        metadata={name: of_samples(value) for name, value in rays.metadata.items()},
        times=of_samples(rays.times),
    )


def _suits(rays: RayBundle) -> bool:
    of_rays = rays.origins, rays.directions  # under autocast, a pose correction makes half precision of these
    return all(of.device.type == "cpu" and of.dim() == 2 and of.dtype == torch.float32 for of in of_rays)
