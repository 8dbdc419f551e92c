"""A prior on a device of its own: the one place where tensors cross from the asker's device and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import Prior, Text
from csd_nerf.priors.wrapped import Wrapped


class Elsewhere(Wrapped):
    """A prior as it is seen from another device.

    What goes in is moved to the prior's device, what comes out to `device`, with its gradient where it has
    one.

    Args:
        prior: where it runs.
        device: of the asker, all of whose tensors are there.
    """

    def __init__(self, prior: Prior, device: torch.device) -> None:
        super().__init__(prior)
        self.device = device

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        return self._here(self.prior.encode(self._there(images)))

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        return self._here(self.prior.decode(self._there(latents)))

    def embed(self, prompts: Sequence[str], condition: Float[Tensor, "n k h w"] | None = None) -> Text:
        shown = None if condition is None else self._there(condition)
        return self.prior.embed(prompts, shown).to(self.device)

    def condition(self, images: Float[Tensor, "n _ height width"]) -> Float[Tensor, "n k h w"]:
        return self._here(self.prior.condition(self._there(images)))

    def encode_source(
        self,
        images: Float[Tensor, "n 3 height width"],
        shown: Float[Tensor, "n _ height width"] | None = None,
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k h w"]]:
        shown = None if shown is None else self._there(shown)
        latents, condition = self.prior.encode_source(self._there(images), shown)
        return self._here(latents), self._here(condition)

    def predict_noise(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"] | None,
    ) -> Float[Tensor, "m c h w"]:
        shown = None if condition is None else self._there(condition)
        text = text.to(self.prior.device)
        return self._here(self.prior.predict_noise(self._there(noisy), t, text, shown))

    def self_attention_features(
        self,
        noisy: Float[Tensor, "m c h w"],
        t: int,
        text: Text,
        condition: Float[Tensor, "m k h w"],
    ) -> list[Float[Tensor, "m _ _ _"]]:
        asked = self._there(noisy), t, text.to(self.prior.device), self._there(condition)
        return [self._here(layer) for layer in self.prior.self_attention_features(*asked)]

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.prior.device)

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def same_device(one: torch.device | str, other: torch.device | str) -> bool:
    """Whether two names are of one device; without a number it is the first.

    Example:
        >>> same_device("cuda", "cuda:0"), same_device("cuda", "cuda:1"), same_device("cuda", "cpu")
        (True, False, False)
    """
    one, other = torch.device(one), torch.device(other)
    return (one.type, one.index or 0) == (other.type, other.index or 0)
