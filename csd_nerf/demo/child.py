"""Running a command of the demo: output to a log, steps to a progress bar, failure in few words."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from csd_nerf.errors import InputError

SECONDS_TO_STOP = 15.0
"""A command that is asked to stop gets so long before it is killed."""

LINES_OF_A_FAILURE = 8

_SET_PARENT_DEATH_SIGNAL = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_begin: Callable[[], None] | None = None  # in a command's process, before it becomes the command
_TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")
_STEP = re.compile(r"^\s*(\d+) \(\d+(?:\.\d+)?%\)")
_NOISE = re.compile(
    r"^\s*$"  # blank
    r"|^[\s\u2500-\u257f-]+$|^\s*[\u2500-\u257f]"  # rules and boxes
    r"|^\s*\d+ \(\d|^Step \(% Done\)"  # the table of steps
    r"|^Printing profiling stats|^[\w.]+: \d+\.\d+\s*$"  # nerfstudio's last words, whatever happened
    r"|Warning: |^Loading weights"
)


class CommandFailed(Exception):
    """A command ended otherwise than well.

    Attributes:
        status: its exit status; negative for a signal, as in subprocess.
        lines: of its output that say why.
        log: file with all of its output.
    """

    def __init__(self, status: int, lines: list[str], log: Path) -> None:
        super().__init__(f"exit status {status}: {' / '.join(lines)}")
        self.status = status
        self.lines = lines
        self.log = log


def run_command(command: Sequence[str], *, folder: Path, log: Path, watch: Callable[[str], None]) -> None:
    """Run a command to its end; whatever ends this ends the command, too.

    Args:
        command: words; the first is `python` or a command that this environment has.
        folder: to run it in.
        log: file to which the command and its output are appended, without terminal codes.
        watch: called with every line of output.

    Raises:
        CommandFailed: when its exit status is not 0.
        InputError: when there is no such command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    recent: deque[str] = deque(maxlen=200)
    with log.open("a", encoding="utf8") as log_file:
        log_file.write(f"$ {shlex.join(command)}\n")
        child = subprocess.Popen(
            [find_program(command[0]), *command[1:]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,  # which also makes a carriage return the end of a line
            encoding="utf8",
            errors="replace",
            preexec_fn=_begin,
        )
        try:
            assert child.stdout is not None, "asked for above"
            for raw in child.stdout:
                line = _TERMINAL_CODES.sub("", raw).rstrip()
                log_file.write(line + "\n")
                log_file.flush()
                recent.append(line)
                watch(line)
            status = child.wait()
        finally:
            _stop(child)
    if status != 0:
        raise CommandFailed(status, failure_lines(list(recent)), log)


def find_program(name: str) -> str:
    """The program of this environment, whether or not the environment is activated.

    Raises:
        InputError: when it is not installed.
    """
    if name == "python":
        return sys.executable
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise InputError(
            f"{name} is not there",
            expected=f"the command next to {sys.executable}",
            got="no such command",
            hint="install nerfstudio into the environment of csd-nerf: `pip install -e .` does",
        )
    return found


def end_commands_with_this_process() -> None:
    """On Linux, let commands that are begun from now on be killed when this process is.

    For processes that something else may kill and begin again, as Ray does for want of memory: the command
    would otherwise go on beside its second try. Not for one that people stop, which stops its commands
    itself: a signal that comes while a command is begun in this way can be lost.
    """
    global _begin
    if _PRCTL is not None:
        _begin = partial(_PRCTL, _SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _stop(child: subprocess.Popen[str]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def step_of(line: str) -> int | None:
    """The step in a line of nerfstudio's table, `100 (6.67%)  206.6 ms  4 m, 49 s`; None in any other."""
    found = _STEP.match(line)
    return int(found.group(1)) if found else None


def failure_lines(lines: Sequence[str]) -> list[str]:
    """What of a failed command's output says why: its error message, or else its last lines."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Error:")]
    if starts:
        message = lines[starts[-1] :]
        ends = [number for number, line in enumerate(message) if line.lstrip().startswith("do this:")]
        return list(message[: ends[0] + 1] if ends else message[:LINES_OF_A_FAILURE])
    return [line for line in lines if not _NOISE.search(line)][-LINES_OF_A_FAILURE:]
