"""A prior inside of another: what both say of themselves is the same."""

from __future__ import annotations

from torch import Tensor

from csd_nerf.priors.base import Prior


class Wrapped(Prior):
    """A prior that another answers for; how, its subclasses say.

    Args:
        prior: the other.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.device = prior.device
        self.image_conditioned = prior.image_conditioned
        self.guided_by = prior.guided_by
        self.text_sees_picture = prior.text_sees_picture
        self.time_shift = prior.time_shift
        self.shown = prior.shown
        self.schedule = prior.schedule
        self.latent_channels = prior.latent_channels
        self.vae_factor = prior.vae_factor
        self.native_size = prior.native_size
        self.clip_frames = prior.clip_frames
        self.most_frames = prior.most_frames
        self.frame_factor = prior.frame_factor
        self.dtype = prior.dtype
        self.unet_batch_size = prior.unet_batch_size
        self.vae_batch_size = prior.vae_batch_size
        self.self_attention_layers = prior.self_attention_layers

    def settled(self, guided: Tensor, prompted: Tensor, noisy: Tensor, t: int) -> Tensor:
        return self.prior.settled(guided, prompted, noisy, t)

    @property
    def unet_evaluations(self) -> int:  # type: ignore[override]
        return self.prior.unet_evaluations
