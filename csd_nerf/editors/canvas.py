"""What a 2-D edit works on: latents that are drawn and changed as particles.

A canvas knows which particles a step consists of, and nothing of prompts' meaning, priors or objectives. The
loop in `csd_nerf.editors.loop` edits any of them:

- `csd_nerf.editors.window_canvas.WindowCanvas`: the windows of one picture, its latents (1, c, H, W);
- a clip: latents (frames, c, h, w), whose places are frames. Batches are groups of frames with their anchors,
  and a frame that is in several groups of a step has weights that add up to one over them;
- `csd_nerf.editors.clip_canvas.ClipCanvas`: a clip with a prior for clips, its latents (1, c, f, h, w), whose
  places are overlapping stretches of it.

Of a prior for clips all that is (n, c, h, w) here is (n, c, f, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Place = TypeVar("Place")
"""Where on a canvas a particle is: a window of a picture, a frame of a clip."""


@dataclass(frozen=True)
class Batch(Generic[Place]):
    """Particles that share their scores.

    Args:
        prompt: what is to become of them.
        places: where they are, one or more.
    """

    prompt: str
    places: list[Place]


@dataclass(frozen=True)
class Particles:
    """The latents of a batch, as `Objective.gradient` takes them.

    Args:
        latents: as they are now.
        source: of the unedited picture.
        condition: what the prior is shown of the unedited picture.
    """

    latents: Float[Tensor, "n c h w"]
    source: Float[Tensor, "n c h w"]
    condition: Float[Tensor, "n k h w"]


class Canvas(ABC, Generic[Place]):
    """Latents under edit.

    Attributes:
        latents: (m, c, H, W); the loop changes them in place and nothing else of the canvas.
    """

    latents: Float[Tensor, "m c height width"]

    @abstractmethod
    def batches(self, generator: torch.Generator) -> list[Batch[Place]]:
        """The batches of one step, which together hold every latent.

        Args:
            generator: source of every random choice, so that a step can be repeated.
        """

    @abstractmethod
    def gather(self, batch: Batch[Place]) -> Particles:
        """The particles of a batch."""

    @abstractmethod
    def scatter(
        self,
        batch: Batch[Place],
        gradient: Float[Tensor, "n c h w"],
        into: Float[Tensor, "m c height width"],
    ) -> None:
        """Add a batch's gradient to that of the whole canvas, weighted.

        Over the batches of a step the weights of every latent add up to one: what several particles say of a
        latent is averaged, and corners are edited as much as the middle.
        """


def evenly(places: list[Place], most: int) -> list[list[Place]]:
    """Cut places into as few groups of at most `most` as will do, of about equal size.

    Example:
        >>> [len(group) for group in evenly(list(range(17)), 16)]
        [8, 9]
    """
    count = -(-len(places) // most)
    bounds = [round(index * len(places) / count) for index in range(count + 1)] if count else [0]
    return [places[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
