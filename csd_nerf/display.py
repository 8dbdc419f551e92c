"""Progress bars with the time left on a terminal; a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class Stage(Protocol):
    """A part of the work.

    Attributes:
        key: tells it from the others.
        title: what it does, for people.
        total: what there is to do in it, counted in `unit`.
        unit: of the total, in the plural.
    """

    @property
    def key(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def unit(self) -> str: ...


def minutes(seconds: float) -> str:
    """A duration for people: `45 s`, `3 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Display:
    """Shows the stages of some work: those done and the one that runs."""

    def __init__(self, stages: Sequence[Stage], console: Console) -> None:
        self.stages = stages
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}", justify="right"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {
            stage.key: self.bars.add_task(
                escape(f"{self._number(stage)} {stage.title}"), visible=False, total=stage.total, count=""
            )
            for stage in stages
        }

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bars as they are."""
        self.bars.stop()

    def skip(self, stage: Stage) -> None:
        """The stage was done by an earlier run."""
        self._set(stage, completed=stage.total, count="done before")
        self.bars.stop_task(self.tasks[stage.key])
        self._say(stage, "done before")

    def begin(self, stage: Stage, start: int) -> None:
        """The stage is starting up; `start` steps were done by an earlier run."""
        task = self.tasks[stage.key]
        self.bars.reset(task, completed=start, count="starting", visible=True)
        where = f", from step {start}" if start else ""
        self._say(stage, f"{stage.total} {stage.unit}{where} ...")

    def update(self, stage: Stage, steps: float) -> None:
        """So many steps are done, a part of one counting for the time left."""
        self._set(stage, completed=steps, count=f"{int(steps)}/{stage.total} {stage.unit}")

    def finish(self, stage: Stage, seconds: float) -> None:
        """The stage is done."""
        self._set(stage, completed=stage.total, count=f"{stage.total} {stage.unit}")
        self._say(stage, f"done in {minutes(seconds)}")

    def _set(self, stage: Stage, *, completed: float, count: str) -> None:
        self.bars.update(self.tasks[stage.key], completed=completed, count=count, visible=True)

    def _number(self, stage: Stage) -> str:
        return f"[{[other.key for other in self.stages].index(stage.key) + 1}/{len(self.stages)}]"

    def _say(self, stage: Stage, what: str) -> None:
        if not self.console.is_terminal:
            line = f"{self._number(stage)} {stage.title}: {what}"
            self.console.print(Text(line), soft_wrap=True)
