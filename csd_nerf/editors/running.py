"""The steps of an edit with somebody watching, and going on where an earlier run ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from csd_nerf.distillation import Objective
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
    start = observer.resume({**settings.outcome(), **identity}, canvas.latents)
    observer.start(work, start)
    for done in descend(
        canvas,
        objective,
        settings.descent(),
        source_prompt=settings.source_prompt,
        seed=settings.seed,
        start=start,
    ):
        observer.advance(work, done.steps + done.share)
        if done.share == 0:
            observer.step(done.steps, canvas.latents, draw)
    observer.finish(work)
