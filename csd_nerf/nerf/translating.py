"""A translator in the place of a diffusion model: it says what views become, and asks none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.priors.base import Prior, Text
from csd_nerf.translation.model_file import load_translator


class TranslatorPrior(Prior):
    """What an edit by `translate` asks: its latents are the pictures themselves, its words a target's number.

    It knows no noise, and nothing can be distilled from it; what it can do is `translated`.

    Args:
        path: of the file that `csd-nerf translate train` wrote.
        device: where it runs.

    Raises:
        InputError: see `load_translator`.
    """

    image_conditioned = True
    guided_by = "itself"
    latent_channels = 3
    vae_factor = 1

    def __init__(self, path: Path, device: torch.device | str) -> None:
        self.translator = load_translator(path, device)
        self.device = torch.device(device)

    def translated(
        self, pictures: Float[Tensor, "n 3 height width"], prompt: str
    ) -> Float[Tensor, "n 3 height width"]:
        """What pictures become, RGB in 0..1.

        Args:
            pictures: RGB in 0..1.
            prompt: one that it was trained for.

        Raises:
            InputError: it was not.
        """
        target = self.translator.target(prompt)
        return torch.stack([self.translator.translate(picture, target) for picture in pictures]).to(
            pictures.device
        )

    def encode(self, images: Float[Tensor, "n 3 height width"]) -> Tensor:
        return images

    def decode(self, latents: Float[Tensor, "n 3 height width"]) -> Tensor:
        return latents.clamp(0, 1)

    def embed(self, prompts: Sequence[str], condition: Tensor | None = None) -> Text:
        """Numbers of targets, (n, 1).

        Raises:
            InputError: it has no such target.
        """
        return torch.tensor([[self.translator.target(prompt)] for prompt in prompts])

    def condition(self, images: Float[Tensor, "n 3 height width"]) -> Tensor:
        return images[:, :0]

    def predict_noise(self, *_: object) -> NoReturn:
        raise TypeError("a translator predicts no noise")

    def self_attention_features(self, *_: object) -> NoReturn:
        raise TypeError("a translator has no attention")
