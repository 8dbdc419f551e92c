"""A comparison as it goes on: a live table on a terminal; a line per command elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from csd_nerf.display import minutes

if TYPE_CHECKING:
    from csd_nerf.comparison.jobs import Job
    from csd_nerf.demo.stages import Stage


class LiveTable:
    """One row for each instruction and method, over all seeds.

    Args:
        scene: stages that come before the edits.
        jobs: the edits.
        console: to show it on.
    """

    def __init__(self, scene: Sequence[Stage], jobs: Sequence[Job], console: Console) -> None:
        self._console, self._jobs = console, jobs
        self._done = [job.finished() for job in jobs]
        self._failed: dict[int, str] = {}
        self._now: dict[int | None, str] = {}
        self._has_scene = bool(scene)
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def of(self, job: int | None) -> JobDisplay:
        """What shows the commands of a job, or of the scene."""
        return JobDisplay(self, job)

    def begin(self, job: int | None, stage: Stage, start: int) -> None:
        """A command is starting up; `start` steps were done before."""
        self._now[job] = f"{stage.title}: starting"
        where = f", from step {start}" if start else ""
        self._say(f"{self._name(job)}: {stage.title}, {stage.amount}{where} ...")

    def update(self, job: int | None, stage: Stage, steps: float) -> None:
        """So many steps are done."""
        self._now[job] = f"{stage.title}, {stage.amount}: {int(steps)} {stage.unit} done"

    def finish(self, job: int | None, seconds: float) -> None:
        """All commands of a job, or of the scene, are done."""
        self._now.pop(job, None)
        if job is not None:
            self._done[job] = True
            self._say(f"{self._name(job)}: done in {minutes(seconds)}")

    def fail(self, job: int, reason: str) -> None:
        """A command of a job failed."""
        self._now.pop(job, None)
        self._failed[job] = reason
        self._say(f"{self._name(job)}: failed: {reason}")

    def _name(self, number: int | None) -> str:
        if number is None:
            return "scene"
        job = self._jobs[number]
        seed = "" if job.seed is None else f", seed {job.seed}"
        return f"[{number + 1}/{len(self._jobs)}] {job.instruction.prompt}, {job.method}{seed}"

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(line), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("instruction", "method", "edits done", "now"):
            table.add_column(heading)
        if self._has_scene and None in self._now:
            table.add_row("", "the scene", "", Text(self._now[None]))
        groups: dict[tuple[str, str], list[int]] = {}
        for number, job in enumerate(self._jobs):
            groups.setdefault((job.instruction.prompt, job.method), []).append(number)
        for (prompt, method), numbers in groups.items():
            table.add_row(Text(prompt), Text(method), self._count(numbers), self._state(numbers))
        return table

    def _count(self, numbers: Sequence[int]) -> str:
        return f"{sum(self._done[number] for number in numbers)} of {len(numbers)}"

    def _state(self, numbers: Sequence[int]) -> Text:
        running = [number for number in numbers if number in self._now]
        if running:
            return Text("; ".join(map(self._running, running)), style="bold")
        failed = [self._failed[number] for number in numbers if number in self._failed]
        if failed:
            return Text(f"{len(failed)} failed: {failed[-1].splitlines()[0][:60]}", style="red")
        if all(self._done[number] for number in numbers):
            return Text("done", style="green")
        return Text("")

    def _running(self, number: int) -> str:
        seed, now = self._jobs[number].seed, self._now[number]
        return now if seed is None else f"seed {seed}: {now}"


@dataclass(frozen=True)
class JobDisplay:
    """Shows the commands of one job, None being the scene, in the table of all."""

    table: LiveTable
    job: int | None

    def begin(self, stage: Stage, start: int) -> None:
        """See `LiveTable.begin`."""
        self.table.begin(self.job, stage, start)

    def update(self, stage: Stage, steps: float) -> None:
        """See `LiveTable.update`."""
        self.table.update(self.job, stage, steps)
