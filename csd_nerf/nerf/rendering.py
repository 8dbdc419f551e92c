"""Whole views out of a NeRF with a gradient, in memory that does not grow with the number of views."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from csd_nerf.nerf.cpu_sampling import distortion_loss, interlevel_loss
from csd_nerf.nerf.source_field import edited_everywhere


@dataclass
class RenderedViews:
    """What a step draws.

    Attributes:
        images: (N, 3, H, W), 0..1, with a gradient to the model's parameters.
        opacity: (N, 1, H, W), 0..1, what of each pixel is scene and not background; with a gradient.
        interlevel: nerfacto's proposal loss on the rays that carry a gradient, scalar.
        distortion: nerfacto's distortion loss on the same rays, scalar.
    """

    images: Float[Tensor, "n 3 h w"]
    opacity: Float[Tensor, "n 1 h w"]
    interlevel: Tensor
    distortion: Tensor


def render_views(
    model: NerfactoModel,
    cameras: Cameras,
    indices: list[int],
    *,
    only: slice = slice(None),
    rays_per_chunk: int,
    gradient_share: float = 1.0,
) -> RenderedViews:
    """Render the cameras `indices` differentiably.

    Every chunk of rays runs under `torch.utils.checkpoint`: only the rays and colours of the views are
    kept, and the backward pass renders one chunk at a time again. So the gradient has to be asked for by
    `backward`; `torch.autograd.grad` is refused by torch.

    With `gradient_share` below 1 only a random share of each view's pixels carries a gradient, enlarged
    by the inverse of the share. Every pixel is equally likely to be among them, so the expected gradient
    is that of the whole view; the other pixels are rendered once, without a graph, as many at a time as of
    a picture.

    Args:
        model: in training mode, on the cameras' device, after `train_proposals`.
        cameras: of the whole training split, all of one size; their index selects the pose correction.
        indices: N of them, or more.
        only: of these the N that are drawn, by random numbers that are theirs whichever others are drawn.
        rays_per_chunk: rays with a gradient that are rendered at a time.
        gradient_share: in (0, 1].
    """
    views, interlevel, distortion = [], [], []
    *seeds, afterwards = torch.randint(2**62, (len(indices) + 1,)).tolist()
    indices = indices[only]
    for index, seed in zip(indices, seeds[only], strict=True):
        torch.manual_seed(seed)
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        height, width = rays.shape
        rays = rays.flatten()
        order = torch.randperm(len(rays), device=rays.origins.device)
        carrying = max(1, round(gradient_share * len(rays)))
        pieces = []
        for chunk in _chunks(order[:carrying], rays_per_chunk):
            pixels, between_levels, spread = _checkpointed(_render_with_regularisers, model, rays, chunk)
            pieces.append(_enlarge_gradient(pixels.float(), len(rays) / carrying))
            interlevel.append(between_levels * (len(chunk) / carrying))
            distortion.append(spread * (len(chunk) / carrying))
        with torch.no_grad():
            pieces += [
                _pixels(_outputs(model, rays, chunk)).float()
                for chunk in _chunks(order[carrying:], model.config.eval_num_rays_per_chunk)
            ]
        pixels = torch.cat(pieces)[torch.argsort(order)]  # (H * W, 4), back in row-major order
        views.append(pixels.view(height, width, 4).permute(2, 0, 1))
    torch.manual_seed(afterwards)
    count = len(indices)
    images, opacity = torch.stack(views).split([3, 1], dim=1)
    return RenderedViews(
        images=images,
        opacity=opacity,
        interlevel=torch.stack(interlevel).sum() / count,
        distortion=torch.stack(distortion).sum() / count,
    )


@dataclass
class StillView:
    """A view drawn without gradient and without chance.

    Attributes:
        image: (3, H, W), 0..1.
        depth: (1, H, W), distance of the surface along the viewing axis, in the scene's units: where half of
            the light is stopped (nerfacto's "depth", the median), which keeps edges sharp where the mean
            would put surfaces between foreground and background.
        inside: (1, H, W), 0..1, the share of each pixel's rendering weights in a part of space; 0 where none
            was asked for.
    """

    image: Float[Tensor, "3 h w"]
    depth: Float[Tensor, "1 h w"]
    inside: Float[Tensor, "1 h w"]


@torch.no_grad()
def render_still(
    model: NerfactoModel,
    rays: RayBundle,
    *,
    inside: Callable[[Tensor], Tensor] | None = None,
) -> StillView:
    """A view from a training camera as the scene is shown; no sample is jittered.

    Args:
        model: in training mode, on the rays' device.
        rays: (H, W), of the view; the camera index in the whole split selects the pose correction.
        inside: which positions (R, S, 3) are in a part of space, (R, S).
    """
    height, width = rays.shape
    rays = rays.flatten()
    size = model.config.eval_num_rays_per_chunk
    colours, depths, shares = [], [], []
    with still(model), torch.autocast(model.device.type, enabled=False):
        for chunk in _chunks(torch.arange(len(rays), device=rays.origins.device), size):
            bundle = rays[chunk]
            outputs = model(bundle)
            colours.append(outputs["rgb"].float())
            # Along the ray, of unit length; along the axis it is shorter towards the corners.
            depths.append(outputs["depth"].float() / bundle.metadata["directions_norm"])
            weights = outputs["weights_list"][-1].float()  # (R, S, 1)
            if inside is None:
                shares.append(weights.new_zeros(len(chunk), 1))
            else:
                positions = outputs["ray_samples_list"][-1].frustums.get_positions()
                shares.append((weights * inside(positions)[..., None]).sum(1))
    image = torch.cat(colours).view(height, width, 3).permute(2, 0, 1).clamp(0, 1)
    depth, share = (torch.cat(parts).view(1, height, width) for parts in (depths, shares))
    return StillView(image, depth, share.clamp(0, 1))


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model have other weights for a while; it gets its own back bit by bit."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:  # also when memory runs out: the trainer then saves the edit so far
        model.load_state_dict(own)


@contextmanager
def still(model: NerfactoModel) -> Iterator[None]:
    """Training mode, for the pose correction and the samples, but for what is drawn at random in it: where
    samples are, along rays, and of appearance codes the average that evaluation takes."""
    parts: tuple[nn.Module, ...] = (model.proposal_sampler, model.field)
    modes = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)


def train_proposals(model: NerfactoModel, wanted: bool = True) -> None:
    """Let every chunk train the proposal networks, or none, from now on.

    Nerfacto's sampler decides by a counter which calls do; under checkpointing the second rendering of
    a chunk would decide differently from the first, and the gradient would not match. A resumed edit, too,
    would count differently from one that was not interrupted.
    """
    sampler = model.proposal_sampler
    sampler._step = max(sampler._step, 10)  # below it asks nobody
    sampler.update_sched = lambda step: -1 if wanted else math.inf


def _checkpointed(
    function: Callable[..., tuple[Tensor, ...]], model: NerfactoModel, rays: RayBundle, chunk: Tensor
) -> tuple[Tensor, ...]:
    """`function(model, rays, chunk)`, of which nothing is kept but what it returns.

    By the reentrant kind of checkpoint, whose first pass runs without autograd. The other kind keeps the
    graph of that pass and leaves out its saved tensors alone; what tiny-cuda-nn needs for a backward pass
    belongs to the graph itself, and would pile up over all chunks of all views.
    """

    # An argument has to ask for a gradient, and the parameters are none. By its device, torch knows whose
    # random numbers and precision the second pass must repeat.
    anchor = torch.zeros((), device=chunk.device, requires_grad=True)
    outputs: tuple[Tensor, ...] = checkpoint(
        lambda _: function(model, rays, chunk), anchor, use_reentrant=True
    )
    return outputs


def _render_with_regularisers(
    model: NerfactoModel, rays: RayBundle, chunk: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours and opacity (R, 4), and the two regularisers, of some rays."""
    outputs = _outputs(model, rays, chunk)
    levels = outputs["weights_list"], outputs["ray_samples_list"]
    return _pixels(outputs), interlevel_loss(*levels), distortion_loss(*levels)


def _outputs(model: NerfactoModel, rays: RayBundle, chunk: Tensor) -> dict[str, Any]:
    """What the model says of some rays.

    The rays are selected here, not by the caller: the pose correction writes into the bundle it is
    given, and under checkpointing this runs twice. An edit is of the whole scene, wherever it is shown: see
    `edited_everywhere`.
    """
    with edited_everywhere(model):
        return model(rays[chunk])


def _pixels(outputs: Mapping[str, Tensor]) -> Tensor:
    """Colours and opacity (R, 4)."""
    return torch.cat([outputs["rgb"], outputs["accumulation"]], dim=-1)


def _chunks(indices: Tensor, size: int) -> tuple[Tensor, ...]:
    """Pieces of nearly equal length, none longer than `size`."""
    if not len(indices):
        return ()
    return torch.tensor_split(indices, -(-len(indices) // size))


def _enlarge_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values; their gradient is multiplied by `factor`."""
    return values.detach() + factor * (values - values.detach())
