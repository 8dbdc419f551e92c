"""A picture as a canvas: its windows are the particles (CSD-Edit on panoramas, Kim et al., 2307.04787)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.editors.canvas import Batch, Canvas, Particles, evenly
from csd_nerf.editors.windows import Grid, Place


@dataclass(frozen=True)
class Region:
    """A part of a picture with a prompt of its own.

    Args:
        prompt: what is to become of it.
        weights: how much the prompt counts at each latent; over all regions of a picture they add up to one.
    """

    prompt: str
    weights: Float[Tensor, "h w"]


@dataclass(frozen=True)
class Window:
    """A window of one step's grid and, of the region it is seen in, the weights there."""

    grid: Grid
    place: Place
    share: Float[Tensor, "h w"]


class WindowCanvas(Canvas[Window]):
    """The windows of one picture.

    Every step covers the picture with overlapping windows, shifted at random so that no seam has time to
    form, and deals them out at random to batches, so that in time every window shares scores with every
    other. The released code draws windows at random from a fixed grid instead and leaves corners behind. With
    regions, a window is a particle of every prompt that counts in it; windows share scores with those of the
    same prompt.

    Args:
        source: scaled latents of the picture.
        condition: what the prior is shown of it.
        regions: one or more.
        window: side of the windows, in latents.
        particles: most windows in a batch.
        wrap: whether the right edge continues at the left one.
    """

    def __init__(
        self,
        source: Float[Tensor, "1 c height width"],
        condition: Float[Tensor, "1 k height width"],
        regions: list[Region],
        *,
        window: int,
        particles: int,
        wrap: bool = False,
    ) -> None:
        self.latents = source.clone()
        self.source = source
        self.condition = condition
        self.regions = regions
        self.window = window
        self.particles = particles
        self.wrap = wrap

    def batches(self, generator: torch.Generator) -> list[Batch[Window]]:
        height, width = self.latents.shape[2:]
        down, right = (torch.rand(2, generator=generator) - 0.5).tolist()
        grid = Grid.over(height, width, self.window, wrap=self.wrap, shifts=(down, right))
        batches = []
        for region in self.regions:
            windows = [
                Window(grid, place, grid.part(place, region.weights[None, None])[0, 0])
                for place in grid.places
            ]
            windows = [window for window in windows if window.share.any()]
            order = torch.randperm(len(windows), generator=generator).tolist()
            groups = evenly([windows[index] for index in order], self.particles)
            batches += [Batch(region.prompt, group) for group in groups]
        return batches

    def gather(self, batch: Batch[Window]) -> Particles:
        def stack(canvas: Tensor) -> Tensor:
            return torch.cat([window.grid.part(window.place, canvas) for window in batch.places])

        return Particles(stack(self.latents), stack(self.source), stack(self.condition))

    def scatter(
        self,
        batch: Batch[Window],
        gradient: Float[Tensor, "n c h w"],
        into: Float[Tensor, "1 c height width"],
    ) -> None:
        for window, part in zip(batch.places, gradient, strict=True):
            window.grid.add(window.place, window.share.to(part) * part, into)
