"""The loop of all 2-D edits: gather particles, ask the objective, scatter its gradient, descend.

    canvas = ...                                     # a Canvas: windows of a picture, frames of a clip
    for done in descend(canvas, objective, descent, seed=0):
        ...                                          # progress, previews, saving: canvas.latents so far

A step goes over the whole canvas once, in batches of particles at one timestep, and then moves every latent
once. How far an edit goes hence depends on the steps and not on the size of the canvas, and memory on the
size of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from csd_nerf.distillation.descent import DescentConfig
from csd_nerf.distillation.objective import NonFiniteResidual, Objective
from csd_nerf.editors.canvas import Canvas
from csd_nerf.errors import InputError
from csd_nerf.seeds import step_seed

NON_FINITE_STEPS_IN_A_ROW = 5
"""So many skipped steps in a row end the edit: it will not recover by itself."""


@dataclass(frozen=True)
class Done:
    """Where an edit has got to.

    Args:
        steps: whole steps done.
        share: of the next step's particles that were asked about, 0 when a step has just been taken.
        statistics: of the last batch, see `Distilled`.
    """

    steps: int
    share: float
    statistics: dict[str, float]


@torch.no_grad()
def descend(
    canvas: Canvas[Any],
    objective: Objective,
    descent: DescentConfig,
    *,
    source_prompt: str = "",
    seed: int = 0,
    start: int = 0,
) -> Iterator[Done]:
    """Edit a canvas in place.

    Args:
        canvas: its latents are changed.
        objective: says how.
        descent: how many steps, how large.
        source_prompt: description of the source, for methods that compare with one.
        seed: with the number of the step, decides everything random in it.
        start: steps that an earlier run has done; the canvas holds what it left.

    Yields:
        After every batch; the latents have changed when `share` is 0, and may then be saved: with `start` set
        to `steps`, another run goes on exactly as this one would.

    Raises:
        InputError: five steps in a row had no finite gradient, and what `Objective.gradient` raises.
    """
    skipped = 0
    for step in range(start, descent.steps):
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        timestep = objective.draw_timestep(step=step, max_steps=descent.steps, generator=generator)
        batches = canvas.batches(generator)
        noise = generator.get_state()
        change = torch.zeros_like(canvas.latents)
        statistics: dict[str, float] = {}
        try:
            for number, batch in enumerate(batches, start=1):
                if objective.config.noise == "shared":
                    generator.set_state(noise)  # one for the particles of all batches
                particles = canvas.gather(batch)
                distilled = objective.gradient(
                    particles.latents,
                    particles.source,
                    particles.condition,
                    prompt=batch.prompt,
                    source_prompt=source_prompt,
                    timestep=timestep,
                    generator=generator,
                )
                canvas.scatter(batch, distilled.gradient, change)
                statistics = distilled.statistics
                if number < len(batches):
                    yield Done(step, number / len(batches), statistics)
        except NonFiniteResidual as error:
            skipped = one_more_skipped(skipped, error)
        else:
            skipped = 0
            canvas.latents -= descent.rate(step) * change
        yield Done(step + 1, 0.0, statistics)


def one_more_skipped(before: int, error: NonFiniteResidual) -> int:
    """How many steps in a row have had no finite gradient, with the one of this error.

    Args:
        before: as many before it.

    Raises:
        InputError: they are five.
    """
    if before + 1 == NON_FINITE_STEPS_IN_A_ROW:
        raise InputError(
            f"{before + 1} steps in a row had no finite gradient",
            expected="numbers that can be followed",
            got=str(error),
            hint="use --precision float32, or a lower text guidance",
        ) from error
    return before + 1
