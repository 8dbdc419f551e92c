"""The steps of an edit with somebody watching, and going on where an earlier run ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.distillation import DescentConfig, Objective
from csd_nerf.editors.canvas import Canvas
from csd_nerf.editors.loop import descend
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.editors.settings import EditSettings


def edit_work(settings: EditSettings) -> Work:
    """The steps of an edit as a part of its work."""
    return Work("edit", "Edit", settings.descent().steps, "steps")


def run(
    canvas: Canvas[Any],
    objective: Objective,
    settings: EditSettings,
    work: Work,
    *,
    identity: dict[str, Any],
    draw: Callable[[], Any],
    observer: Observer,
) -> None:
    """Edit a canvas in place, from where the observer knows an earlier run to have ended.

    Args:
        canvas, objective: see `descend`.
        settings: with the steps, the learning rate, the seed and the source prompt.
        work: from `edit_work`, and in the observer's plan.
        identity: as JSON, what decides the outcome besides the settings: the source and the prompts.
        draw: makes a picture, or frames, of the canvas as it is.
        observer: told of the progress.
    """
    run_passes(
        [Pass(canvas, settings.descent())],
        canvas.latents,
        objective,
        settings,
        work,
        identity=identity,
        draw=draw,
        observer=observer,
    )


@dataclass(frozen=True)
class Pass:
    """An edit of a canvas that another one may follow, of the same latents or some of them.

    Args:
        canvas: its latents are those of the whole edit, or a view of them.
        descent: how many steps, how large.
        begin: called before the first step.
    """

    canvas: Canvas[Any]
    descent: DescentConfig
    begin: Callable[[], None] = lambda: None


def run_passes(
    passes: Sequence[Pass],
    latents: Float[Tensor, "m c height width"],
    objective: Objective,
    settings: EditSettings,
    work: Work,
    *,
    identity: dict[str, Any],
    draw: Callable[[], Any],
    observer: Observer,
) -> None:
    """As `run`, for one canvas after the other; steps are counted over all of them.

    Args:
        passes: in order.
        latents: of the whole edit, what an interrupted run is taken up with.
        objective, settings, work, identity, draw, observer: as for `run`.
    """
    start = ranks.as_first(observer.resume({**settings.outcome(), **identity}, latents))
    if start:
        latents.copy_(ranks.as_first(latents.cpu()))
    observer.start(work, start)
    before = 0
    for part in passes:
        if start <= before:
            part.begin()
        for done in descend(
            part.canvas,
            objective,
            part.descent,
            source_prompt=settings.source_prompt,
            seed=settings.seed,
            start=max(start - before, 0),
        ):
            observer.advance(work, before + done.steps + done.share)
            if done.share == 0:
                observer.step(before + done.steps, latents, draw)
        before += part.descent.steps
    observer.finish(work)
