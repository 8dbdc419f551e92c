"""What views can be compared by instead of their latents: features of their pictures, as vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.lpips import load_lpips
from csd_nerf.priors.base import Prior

Distance = Literal["latents", "colours", "lpips"]
Feature = Callable[[Tensor], Tensor]

_COLOUR_CELLS = 16
_LPIPS_SIDE = 64
"""Short side, in pixels, of the pictures that LPIPS compares: that of the renders in CSD's text-to-3D."""


def load_feature(distance: Distance, prior: Prior) -> Feature | None:
    """A differentiable function from clean scaled latents (n, c, h, w) to features (n, f) of their pictures.

    Args:
        distance: what is compared; "latents" needs no feature, and there is None.
        prior: whose `decode` makes the pictures.

    Raises:
        InputError: LPIPS cannot be loaded.
    """
    if distance == "latents":
        return None
    describe = colours if distance == "colours" else LpipsFeatures(prior.device)
    if prior.clip_frames:
        return lambda latents: of_clips(describe, prior.decode(latents))
    return lambda latents: describe(prior.decode(latents))


def of_clips(describe: Feature, clips: Float[Tensor, "n 3 frames height width"]) -> Float[Tensor, "n f"]:
    """Features of clips whose squared distance is the mean of that of their frames.

    Args:
        describe: of pictures.
        clips: RGB in 0..1.

    Example:
        >>> clips = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1, 1).expand(2, 3, 4, 48, 64)
        >>> black, grey = of_clips(colours, clips)
        >>> round((black - grey).square().sum().item(), 4)
        0.25
    """
    count, frames = len(clips), clips.shape[2]
    return describe(clips.transpose(1, 2).flatten(0, 1)).view(count, -1) / frames**0.5


def colours(pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n f"]:
    """Where which colours are: means of 16 x 16 cells, f = 768.

    Scaled so that a squared distance is the mean squared difference of the reduced pictures.

    Args:
        pictures: RGB in 0..1.

    Example:
        >>> black, grey = colours(torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 48, 64))
        >>> round((black - grey).square().sum().item(), 4)
        0.25
    """
    reduced = functional.adaptive_avg_pool2d(pictures, _COLOUR_CELLS).flatten(1)
    return reduced / reduced.shape[1] ** 0.5


class LpipsFeatures:
    """Features whose squared distance is LPIPS of the pictures (Zhang et al., 1801.03924, equation 1).

    LPIPS is a sum over layers of means over places of `sum_c w_c (u_c - v_c)^2`, for activations u and v of
    unit length and weights w >= 0: the squared distance of `sqrt(w_c / places) u_c`.

    Args:
        device: where AlexNet is to run.

    Raises:
        InputError: AlexNet's weights are neither on this machine nor to be fetched.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._net = load_lpips(
            device, hint="use --pipeline.objective.distance colours, which needs no weights, or latents"
        )

    def __call__(self, pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n f"]:
        """Of RGB pictures in 0..1, brought to a short side of 64 pixels."""
        factor = _LPIPS_SIDE / min(pictures.shape[-2:])
        size = [max(round(side * factor), _LPIPS_SIDE) for side in pictures.shape[-2:]]
        pictures = functional.interpolate(pictures, size, mode="bilinear", antialias=True)
        layers = self._net.net(self._net.scaling_layer(2 * pictures - 1))
        features = []
        for layer, linear in zip(layers, self._net.lins, strict=True):
            unit = layer / (layer.square().sum(1, keepdim=True) + 1e-8).sqrt()
            weights = linear.model[-1].weight / unit[0, 0].numel()  # (1, channels, 1, 1)
            features.append((unit * weights.sqrt()).flatten(1))
        return torch.cat(features, dim=1)
