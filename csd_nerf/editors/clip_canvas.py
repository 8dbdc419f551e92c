"""A clip as a canvas of a prior for clips: overlapping stretches of it are the particles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.editors.canvas import Batch, Canvas, Particles, evenly
from csd_nerf.editors.windows import Cover, cover


@dataclass(frozen=True)
class Stretch:
    """A stretch of the clip in one step's cover of it."""

    cover: Cover
    number: int


class ClipCanvas(Canvas[Stretch]):
    """One clip, of any length, of which a prior sees some frames at once.

    In time it is what a panorama is in space: every step covers it with overlapping stretches, moved at
    random so that no seam has time to form, and deals them out at random to batches that share scores. What
    several stretches say of a frame is averaged, and that counts most in whose middle it is. A clip no longer
    than a stretch is a single particle.

    Args:
        latents: to be changed, in place.
        source: scaled latents of the clip.
        condition: what the prior is shown of it.
        prompt: what is to become of it.
        window: length of a stretch, in latents.
        particles: most stretches in a batch.
    """

    def __init__(
        self,
        latents: Float[Tensor, "1 c f h w"],
        source: Float[Tensor, "1 c f h w"],
        condition: Float[Tensor, "1 k f h w"],
        prompt: str,
        *,
        window: int,
        particles: int,
    ) -> None:
        self.latents = latents
        self.source = source
        self.condition = condition
        self.prompt = prompt
        self.window = min(window, source.shape[2])
        self.particles = particles

    def batches(self, generator: torch.Generator) -> list[Batch[Stretch]]:
        shift = torch.rand((), generator=generator).item() - 0.5
        stretches = cover(self.latents.shape[2], self.window, shift=shift)
        order = torch.randperm(len(stretches.starts), generator=generator).tolist()
        groups = evenly([Stretch(stretches, number) for number in order], self.particles)
        return [Batch(self.prompt, group) for group in groups]

    def gather(self, batch: Batch[Stretch]) -> Particles:
        def stack(canvas: Tensor) -> Tensor:
            indices = [each.cover.indices(each.number).to(canvas.device) for each in batch.places]
            return torch.cat([canvas[:, :, some] for some in indices])

        return Particles(stack(self.latents), stack(self.source), stack(self.condition))

    def scatter(
        self,
        batch: Batch[Stretch],
        gradient: Float[Tensor, "n c window h w"],
        into: Float[Tensor, "1 c f h w"],
    ) -> None:
        for each, part in zip(batch.places, gradient, strict=True):
            weights = each.cover.weights[each.number].to(part)[:, None, None]
            into[0].index_add_(1, each.cover.indices(each.number).to(part.device), weights * part)
