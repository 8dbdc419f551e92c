"""AnimateDiff (Guo et al., 2307.04725): a U-Net for pictures that layers of motion make one for clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import check
from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix
from csd_nerf.priors.latent_diffusion import LatentDiffusion
from csd_nerf.priors.stable_diffusion import StableDiffusion

USUAL_FRAMES = 16
"""Of the clips that motion layers are trained on, whose positions go further."""


class _Animated(LatentDiffusion):
    """A `UNetMotionModel` in the place of the U-Net; the VAE knows nothing of time and takes frame by frame.

    Between its spatial layers each place of the picture looks along time. Layers of motion that add nothing
    leave the prior for pictures, frame by frame.

    Args:
        unet: of motion.
        parts: of the class for pictures.
    """

    def __init__(self, *, unet: Any, **parts: Any) -> None:
        self.most_frames = int(unet.config["motion_max_seq_length"])
        self.clip_frames = min(USUAL_FRAMES, self.most_frames)
        super().__init__(unet=unet, **parts)

    def _batched(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        frames = inputs.transpose(1, 2)
        return super()._batched(function, frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def _evaluate(
        self,
        unet: Callable[..., Any],
        rows: Float[Tensor, "m _ f h w"],
        timestep: Tensor,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "m c f h w"]:
        frames = rows.shape[2]
        assert self.most_frames is not None
        check(
            frames <= self.most_frames,
            "the prior cannot see so long a clip at once",
            expected=f"{self.most_frames} frames at most, for which its layers of motion have positions",
            got=frames,
            hint="cut it into overlapping clips, as `csd-nerf video` does (--clip-frames)",
        )
        return unet(rows, timestep, encoder_hidden_states=text.repeat_interleave(frames, dim=0)).sample


class AnimatedStableDiffusion(_Animated, StableDiffusion):
    """Stable Diffusion for clips: it knows what a clip of a description looks like."""


class AnimatedInstructPix2Pix(_Animated, InstructPix2Pix):
    """InstructPix2Pix for clips: it is shown the latents of the source's frames beside the noisy ones."""
