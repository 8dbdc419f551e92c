"""Progress bars with the time left on a terminal; a line per part elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class Part(Protocol):
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
    """Shows the parts of some work: those done and the one that runs."""

    def __init__(self, parts: Sequence[Part], console: Console) -> None:
        self.parts = parts
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
            part.key: self.bars.add_task(
                escape(f"{self._number(part)} {part.title}"), visible=False, total=part.total, count=""
            )
            for part in parts
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

    def skip(self, part: Part) -> None:
        """The part was done by an earlier run."""
        self._set(part, completed=part.total, count="done before")
        self.bars.stop_task(self.tasks[part.key])
        self._say(part, "done before")

    def begin(self, part: Part, start: int) -> None:
        """The part is starting up; `start` steps were done by an earlier run."""
        task = self.tasks[part.key]
        self.bars.reset(task, completed=start, count="starting", visible=True)
        where = f", from step {start}" if start else ""
        self._say(part, f"{part.total} {part.unit}{where} ...")

    def update(self, part: Part, steps: float) -> None:
        """So many steps are done, a part of one counting for the time left."""
        self._set(part, completed=steps, count=f"{int(steps)}/{part.total} {part.unit}")

    def finish(self, part: Part, seconds: float) -> None:
        """The part is done."""
        self._set(part, completed=part.total, count=f"{part.total} {part.unit}")
        self._say(part, f"done in {minutes(seconds)}")

    def _set(self, part: Part, *, completed: float, count: str) -> None:
        self.bars.update(self.tasks[part.key], completed=completed, count=count, visible=True)

    def _number(self, part: Part) -> str:
        return f"[{[other.key for other in self.parts].index(part.key) + 1}/{len(self.parts)}]"

    def _say(self, part: Part, what: str) -> None:
        if not self.console.is_terminal:
            line = f"{self._number(part)} {part.title}: {what}"
            self.console.print(Text(line), soft_wrap=True)
