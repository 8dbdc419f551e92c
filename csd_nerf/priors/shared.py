"""A prior whose work is shared by the processes of one edit; see `csd_nerf.ranks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.priors.base import Prior, Text
from csd_nerf.priors.wrapped import Wrapped


def shared(prior: Prior) -> Prior:
    """The prior, shared by the ranks if there are several."""
    return Shared(prior) if ranks.count() > 1 else prior


class Shared(Wrapped):
    """A prior of which every rank has its own, and answers its share of the rows.

    All ranks ask the same at the same time, and each is given the answers to all rows. What has a gradient
    every rank works out for itself.

    Args:
        prior: that of this rank.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self._of_others = 0

    @property
    def unet_evaluations(self) -> int:  # type: ignore[override]
        return super().unet_evaluations + self._of_others

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        return self._by_share(self.prior.encode, images)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        return self._by_share(self.prior.decode, latents)

    def embed(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"] | None = None) -> Text:
        return self.prior.embed(prompts, condition)

    def condition(self, images: Float[Tensor, "n _ height width"]) -> Float[Tensor, "n k h w"]:
        return self.prior.condition(images)

    def encode_source(
        self,
        images: Float[Tensor, "n 3 height width"],
        shown: Float[Tensor, "n _ height width"] | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        latents, condition = ranks.by_share(self.prior.encode_source, images, shown)
        return latents, condition

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

    def _by_share(self, work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        if torch.is_grad_enabled() and rows.requires_grad:
            return work(rows)
        return ranks.by_share(work, rows)
