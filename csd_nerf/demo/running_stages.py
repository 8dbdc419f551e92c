"""Running a stage: its command, its time, its progress, and what is said when it fails."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.text import Text

from csd_nerf.demo.child import CommandFailed, run_command, step_of
from csd_nerf.demo.demo_settings import Progress
from csd_nerf.demo.stages import Stage


class StageDisplay(Protocol):
    """What shows that a stage goes on."""

    def begin(self, stage: Stage, start: int) -> None:
        """The stage is starting up; `start` steps were done by an earlier run."""

    def update(self, stage: Stage, steps: float) -> None:
        """So many steps are done."""


def run_stage(stage: Stage, progress: Progress, display: StageDisplay) -> None:
    """Do what is left of a stage, keeping record of the time it takes.

    Args:
        stage: one that is not finished.
        progress: of all stages.
        display: that shows it.

    Raises:
        CommandFailed: when its command fails, or ends before its work is done.
    """
    command, start = stage.next_command()
    record = progress[stage.key]
    earlier = record.seconds
    record.runs += 1
    progress.save()
    display.begin(stage, start)
    began = time.monotonic()

    def watch(line: str) -> None:
        record.seconds = earlier + time.monotonic() - began
        steps = step_of(line)
        if steps is not None:
            display.update(stage, steps)
            progress.save()  # a kill loses nothing of it

    log = stage.folder / "logs" / f"{stage.key}.log"
    try:
        run_command(command, folder=stage.folder, log=log, watch=watch)
        if not stage.finished():
            # nerfstudio ends well, as it sees it, when it is interrupted.
            raise CommandFailed(1, ["The command ended before its work was done."], log)
    finally:
        record.seconds = earlier + time.monotonic() - began
        progress.save()


def report_failure(stage: Stage, failure: CommandFailed, again: str, console: Console) -> None:
    """Say what failed, why, where to read more, and what to do."""
    console.print("Failed:", style="bold red", end=" ")
    console.print(Text(f"{stage.key} ({explain(failure.status)})"))
    for line in failure.lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(f"All of its output: {failure.log}"), soft_wrap=True)
    console.print(Text(f"To go on from there: {again}"), soft_wrap=True)


def explain(status: int) -> str:
    """How a command ended, in words."""
    if status == -9:
        return "killed, as the system does when memory runs out"
    return f"ended by signal {-status}" if status < 0 else f"exit status {status}"
