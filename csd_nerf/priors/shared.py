"""A prior whose work is shared by the processes of one edit; see `csd_nerf.ranks`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.priors.base import Prior, Text


class Shared(Prior):
    """A prior of which every rank has its own, and answers its share of the rows.

    All ranks ask the same at the same time, and each is given the answers to all rows. What has a gradient
    every rank works out for itself.

    Args:
        prior: that of this rank.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.image_conditioned = prior.image_conditioned
        self.guided_by = prior.guided_by
        self.time_shift = prior.time_shift
        self.shown = prior.shown
        self.schedule = prior.schedule
        self.latent_channels = prior.latent_channels
        self.vae_factor = prior.vae_factor
        self.native_size = prior.native_size
        self.device = prior.device
        self.dtype = prior.dtype
        self.unet_batch_size = prior.unet_batch_size
        self.vae_batch_size = prior.vae_batch_size
        self.self_attention_layers = prior.self_attention_layers
        self._of_others = 0

    @property
    def unet_evaluations(self) -> int:  # type: ignore[override]
        return self.prior.unet_evaluations + self._of_others

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        return self._by_share(self.prior.encode, images)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        return self._by_share(self.prior.decode, latents)

    def embed(self, prompts: Sequence[str]) -> Text:
        return self.prior.embed(prompts)

    def condition(self, images: Float[Tensor, "n _ height width"]) -> Float[Tensor, "n k h w"]:
        return self.prior.condition(images)

    def encode_source(
        self,
        images: Float[Tensor, "n 3 height width"],
        shown: Float[Tensor, "n _ height width"] | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        return self.prior.encode_source(images, shown)

    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        before = self.prior.unet_evaluations

        def answer(noisy: Tensor, text: Text, condition: Tensor | None) -> Tensor:
            return self.prior.predict_noise(noisy, t, text, condition)

        answers = ranks.by_share(answer, noisy, text, condition)
        self._of_others += len(noisy) - (self.prior.unet_evaluations - before)
        return answers

    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        return self.prior.self_attention_features(noisy, t, text, condition)

    def _by_share(self, work: object, rows: Tensor) -> Tensor:
        assert callable(work)
        if torch.is_grad_enabled() and rows.requires_grad:
            result: Tensor = work(rows)
            return result
        return ranks.by_share(work, rows)
