"""Nerfacto's rounds of samples along rays, and its regularisers, on a CPU by compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components import losses
from nerfstudio.model_components.ray_samplers import PDFSampler, ProposalNetworkSampler
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
        samples: RaySamples = _compiled(self.initial_sampler(ray_bundle, num_samples=first))
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

    def _next(self, rays: RayBundle, samples: RaySamples, weights: Tensor, count: int) -> RaySamples:
        sampler: PDFSampler = self.pdf_sampler
        edges = along_rays.resample(
            spacing_edges(samples),
            weights[..., 0],
            _quantiles(sampler, len(weights), count),
            power=self._anneal,
            padding=sampler.histogram_padding,
        )
        along = samples.spacing_to_euclidean_fn
        assert along is not None
        distances = along(edges)
        return _compiled(
            rays.get_ray_samples(
                bin_starts=distances[:, :-1, None],
                bin_ends=distances[:, 1:, None],
                spacing_starts=edges[:, :-1, None],
                spacing_ends=edges[:, 1:, None],
                spacing_to_euclidean_fn=along,
            )
        )


class CpuRaySamples(RaySamples):
    """Nerfstudio's, with compiled weights."""

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


def _compiled(samples: RaySamples) -> CpuRaySamples:
    samples.__class__ = CpuRaySamples  # not built anew, which would broadcast all of its tensors again
    return samples  # type: ignore[return-value]


def _suits(rays: Any) -> bool:
    return (
        rays.origins.device.type == "cpu" and rays.origins.dim() == 2 and rays.origins.dtype == torch.float32
    )
