"""Who is told how an edit goes on, and may keep what it has so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Work:
    """A part of an edit, for a display of progress.

    Args:
        key: tells it from the others.
        title: what it does, for people.
        total: what there is to do, counted in `unit`.
        unit: of the total, in the plural.
    """

    key: str
    title: str
    total: int
    unit: str


class Observer:
    """Told of an edit's progress; this one does nothing about it.

    The order of calls is `plan`, then for each part of the work `start`, `advance` any number of times and
    `finish`. `resume` comes before the edit's steps and `step` after each of them.
    """

    def plan(self, works: Sequence[Work]) -> None:
        """All parts of the work, in order."""

    def start(self, work: Work, done: int = 0) -> None:
        """A part begins; `done` of it was done by an earlier run."""

    def advance(self, work: Work, done: float) -> None:
        """So much of a part is done."""

    def finish(self, work: Work) -> None:
        """A part has ended."""

    def resume(self, identity: dict[str, Any], latents: Tensor) -> int:
        """Take up an earlier run of the same edit.

        Args:
            identity: as JSON, everything that decides the outcome.
            latents: of the canvas, to be overwritten by those of the earlier run.

        Returns:
            Steps that the earlier run had done; 0 if there is none.
        """
        return 0

    def step(self, steps: int, latents: Tensor, draw: Callable[[], Any]) -> None:
        """A step has been taken.

        Args:
            steps: done so far.
            latents: of the canvas.
            draw: makes a picture (3, H, W), 0..1, of the edit so far; takes time. A clip's makes its frames.
        """
