"""LPIPS (Zhang et al., 1801.03924) between patches, as a loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.lpips import load_lpips


class PatchLpips:
    """LPIPS with AlexNet, by torchmetrics, on square patches of rays.

    Deliberately not an `nn.Module`: held by a pipeline, it would end up in the checkpoints.

    Args:
        device: where the patches are.

    Raises:
        InputError: AlexNet's weights are neither on this machine nor to be had from the network.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._net = load_lpips(
            device, hint="train without it: --pipeline.lpips-weight 0 --pipeline.datamanager.patch-size 1"
        )

    def __call__(
        self, rendered: Float[Tensor, "r 3"], colours: Float[Tensor, "r 3"], patch_size: int
    ) -> Tensor:
        """The mean LPIPS of patches, drawn as by `TrainingPictures.sample`; colours in 0..1."""
        with torch.autocast(rendered.device.type, enabled=False):
            patches = (_patches(pixels.float().clamp(0, 1), patch_size) for pixels in (rendered, colours))
            return self._net(*patches, normalize=True).mean()


def _patches(pixels: Float[Tensor, "r 3"], size: int) -> Float[Tensor, "m 3 size size"]:
    return pixels.view(-1, size, size, 3).permute(0, 3, 1, 2)
