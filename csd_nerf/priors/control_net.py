"""ControlNet (Zhang et al., 2302.05543): a text-to-image model that keeps to a picture of the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.models import ControlNetModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError
from csd_nerf.priors.control_pictures import canny_picture, depth_picture
from csd_nerf.priors.stable_diffusion import StableDiffusion


class ControlNet(StableDiffusion):
    """A U-Net whose skip connections a ControlNet adds to; both see the noisy latents and the prompt.

    Every branch of guidance is controlled alike, the empty prompt's too, as in diffusers' pipeline.

    Args:
        control_net: made for the U-Net and the VAE.
        picture: what it was trained with: "depth", and `condition` takes depth, or "canny", and `condition`
            takes source pictures.
        control_scale: factor of what it adds.
        parts: of `LatentDiffusion`.
    """

    def __init__(
        self,
        *,
        control_net: ControlNetModel,
        picture: Literal["depth", "canny"],
        control_scale: float = 1.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        control_net.enable_gradient_checkpointing()  # as the U-Net's
        self.control_net = control_net.eval().requires_grad_(False)
        self.control_scale = control_scale
        self.shown = "depth" if picture == "depth" else "picture"
        self._condition_channels = self.vae_factor**2

    @torch.no_grad()
    def condition(self, images: Float[Tensor, "n _ height width"]) -> Float[Tensor, "n k h w"]:
        """The control picture, one grey channel, its `vae_factor` x `vae_factor` squares as k channels."""
        self._check_size(images)
        channels = 1 if self.shown == "depth" else 3
        if images.shape[1] != channels:
            raise InputError(
                "the ControlNet is shown something else than it needs",
                expected=f"{self.shown} of {channels} channels",
                got=f"{images.shape[1]} channels",
                hint="depth comes from a scene; for pictures use a canny ControlNet"
                if self.shown == "depth"
                else "give RGB pictures",
            )
        picture = depth_picture(images) if self.shown == "depth" else canny_picture(images)
        return functional.pixel_unshuffle(picture, self.vae_factor)

    def _evaluate(
        self,
        unet: Callable[..., Any],
        rows: Float[Tensor, "m _ h w"],
        timestep: Tensor,
        text: Float[Tensor, "m l d"],
    ) -> Float[Tensor, "m c h w"]:
        noisy, packed = rows.split([self.latent_channels, self._condition_channels], dim=1)
        picture = functional.pixel_shuffle(packed, self.vae_factor)  # (M, 1, H, W)
        skips, middle = self.control_net(
            noisy,
            timestep,
            encoder_hidden_states=text,
            controlnet_cond=picture.expand(-1, 3, -1, -1),
            return_dict=False,
        )
        # A black picture has nothing to follow: it is the contract's "no picture", and adds nothing.
        scale = self.control_scale * packed.any(dim=(1, 2, 3)).to(rows.dtype)[:, None, None, None]
        return unet(
            noisy,
            timestep,
            encoder_hidden_states=text,
            down_block_additional_residuals=[skip * scale for skip in skips],
            mid_block_additional_residual=middle * scale,
        ).sample
