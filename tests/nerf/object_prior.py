"""A bundled prior that keeps to an object: what an instruction changes is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from csd_nerf.cameras import fit_photo
from csd_nerf.media import read_picture
from csd_nerf.priors.wrapped import Wrapped
from csd_nerf.scenes.still_life import OBJECT_NAMES


class ObjectPrior(Wrapped):
    """Answers as another prior does, and outside of an object as if there were no prompt.

    Which view a row is of it tells by the picture that it is shown.

    Args:
        prior: the other, which edits pictures.
        dataset: folder of the still life, with its `objects`.
        name: of the object.
    """

    def __init__(self, prior: Any, dataset: Path, name: str) -> None:
        super().__init__(prior)
        files = sorted((dataset / "images").iterdir())
        self._photos = [read_picture(file).pixels[:3] for file in files]
        value = OBJECT_NAMES.index(name)
        self._objects = [
            torch.from_numpy(np.asarray(Image.open(dataset / "objects" / file.name)) == value)[None].float()
            for file in files
        ]
        self._masks: list[tuple[Tensor, Tensor]] = []

    def encode(self, images: Tensor) -> Tensor:
        return self.prior.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.prior.decode(latents)

    def embed(self, prompts: Any) -> Any:
        return self.prior.embed(prompts)

    def self_attention_features(self, *arguments: Any) -> Any:
        return self.prior.self_attention_features(*arguments)

    def condition(self, images: Tensor) -> Tensor:
        shown = self.prior.condition(images)
        height, width = images.shape[-2:]
        photos = torch.stack([fit_photo(photo.permute(1, 2, 0), height, width) for photo in self._photos])
        for image, row in zip(images, shown, strict=True):
            nearest = int((photos - image.cpu()).square().mean((1, 2, 3)).argmin())
            mask = fit_photo(self._objects[nearest].permute(1, 2, 0), height, width)
            self._masks.append((row, F.adaptive_avg_pool2d(mask, row.shape[-2:])))
        return shown

    def predict_noise(self, noisy: Tensor, t: int, text: Any, condition: Tensor | None) -> Tensor:
        asked = self.prior.predict_noise(noisy, t, text, condition)
        if condition is None:
            return asked
        plain = self.prior.predict_noise(noisy, t, self.embed([""]).expand_as(text), condition)
        return torch.lerp(plain, asked, torch.stack([self._mask(row) for row in condition]))

    def _mask(self, row: Tensor) -> Tensor:
        """Of the view that was shown so; all of it where none was."""
        found = [mask for shown, mask in self._masks if torch.equal(shown, row)]
        return found[0] if found else torch.ones_like(row[:1])
