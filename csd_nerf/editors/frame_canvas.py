"""A clip as a canvas: its frames are the particles (CSD-Edit on videos, Kim et al., 2307.04787)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.editors.canvas import Batch, Canvas, Particles, evenly


@dataclass(frozen=True)
class Frame:
    """A frame in one group of a step.

    Args:
        index: of the frame in the clip.
        share: of the group's gradient that counts: one over the number of groups that hold the frame, 0 of a
            frame that stays as it is.
    """

    index: int
    share: float


class FrameCanvas(Canvas[Frame]):
    """The frames of one clip, of any length.

    The released code edits all frames of a short clip as one set of particles. Here as many as fit in a group
    do so; longer clips are cut into runs of consecutive frames, and every run is joined by the same anchors:
    frames spread evenly over the clip. Anchors hear from all groups of a step and so carry the answer to an
    ambiguous prompt from one end of the clip to the other. From step to step the anchors are others, and the
    runs' bounds slide, so that no bound has time to show. Every frame moves once in each step: what the
    groups say of an anchor is averaged.

    Args:
        latents: to be changed, in place.
        source: scaled latents of the frames.
        condition: what the prior is shown of them.
        prompt: what is to become of them.
        particles: most frames in a group, its anchors included.
        anchors: how many of these are anchors where there are several groups.
        fixed: frames that take part and stay as they are, in order; instead of anchors, every run begins and
            ends at one of them.
    """

    def __init__(
        self,
        latents: Float[Tensor, "frames c h w"],
        source: Float[Tensor, "frames c h w"],
        condition: Float[Tensor, "frames k h w"],
        prompt: str,
        *,
        particles: int,
        anchors: int,
        fixed: Sequence[int] = (),
    ) -> None:
        self.latents = latents
        self.source = source
        self.condition = condition
        self.prompt = prompt
        self.particles = particles
        self.anchors = anchors
        self.fixed = frozenset(fixed)

    def batches(self, generator: torch.Generator) -> list[Batch[Frame]]:
        count = len(self.latents)
        if count <= self.particles:
            groups = [list(range(count))]
        elif self.fixed:
            groups = self._runs_between_fixed()
        else:
            groups = self._runs_with_anchors(generator)
        times = Counter(index for group in groups for index in group)
        shares = {index: 0.0 if index in self.fixed else 1 / number for index, number in times.items()}
        return [Batch(self.prompt, [Frame(index, shares[index]) for index in group]) for group in groups]

    def _runs_with_anchors(self, generator: torch.Generator) -> list[list[int]]:
        stretches = evenly(list(range(len(self.latents))), -(-len(self.latents) // self.anchors))
        picks = torch.rand(len(stretches), generator=generator).tolist()
        anchors = [stretch[int(pick * len(stretch))] for stretch, pick in zip(stretches, picks, strict=True)]
        others = [index for index in range(len(self.latents)) if index not in anchors]
        most = self.particles - len(anchors)
        begin = int(torch.randint(most, (1,), generator=generator))
        return [anchors + run for run in evenly(others[begin:] + others[:begin], most)]

    def _runs_between_fixed(self) -> list[list[int]]:
        """Runs from one fixed frame to another, as long as fit in a group; at least one gap each."""
        ends = sorted({0, *self.fixed, len(self.latents) - 1})
        groups = [[ends[0]]]
        for first, last in zip(ends, ends[1:], strict=False):
            gap = list(range(first + 1, last + 1))
            if len(groups[-1]) > 1 and len(groups[-1]) + len(gap) > self.particles:
                groups.append([first])
            groups[-1] += gap
        return groups

    def gather(self, batch: Batch[Frame]) -> Particles:
        indices = [frame.index for frame in batch.places]
        return Particles(self.latents[indices], self.source[indices], self.condition[indices])

    def scatter(
        self,
        batch: Batch[Frame],
        gradient: Float[Tensor, "n c h w"],
        into: Float[Tensor, "frames c h w"],
    ) -> None:
        for frame, part in zip(batch.places, gradient, strict=True):
            into[frame.index] += frame.share * part
