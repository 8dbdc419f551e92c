"""An observer for the command line: bars with the time left, previews, and a file to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from csd_nerf.display import Display
from csd_nerf.editors.observer import Observer, Work
from csd_nerf.errors import InputError
from csd_nerf.files import beside, whole_file

SECONDS_BETWEEN_SAVES = 10.0
"""So much work an interruption may cost."""


class Unfinished:
    """The file beside an output that holds what an interrupted edit had done.

    Args:
        output: of the edit.
    """

    def __init__(self, output: Path) -> None:
        self.path = beside(output, "unfinished")

    def save(self, identity: dict[str, Any], steps: int, latents: Tensor) -> None:
        """Keep latents after so many steps; an older state is replaced only by a whole one."""
        about = {"identity": json.dumps(identity, sort_keys=True), "steps": str(steps)}
        with whole_file(self.path) as partial:
            save_file({"latents": latents.cpu().contiguous()}, partial, metadata=about)

    def load(self, identity: dict[str, Any], latents: Tensor) -> int:
        """Put what an earlier run had done into `latents`; returns its steps, 0 if there was none.

        Raises:
            InputError: it was another edit, or its file cannot be read.
        """
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                about, saved = file.metadata(), file.get_tensor("latents")
            earlier, steps = json.loads(about["identity"]), int(about["steps"])
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{self.path} cannot be read",
                expected="the state of an unfinished edit",
                got=str(error)[:200],
                hint="remove it, or begin again with --force",
            ) from error
        given = json.loads(json.dumps(identity))
        different = sorted(name for name in earlier.keys() | given if earlier.get(name) != given.get(name))
        if different:
            raise InputError(
                f"there is another unfinished edit of this output in {self.path}",
                expected=", ".join(f"{name} {_short(earlier.get(name))}" for name in different),
                got=", ".join(f"{name} {_short(given.get(name))}" for name in different),
                hint="go on with it by the same input and options, choose another output, or begin again "
                "with --force",
            )
        latents.copy_(saved)
        return steps

    def remove(self) -> None:
        """It is finished."""
        self.path.unlink(missing_ok=True)


class FileObserver(Observer):
    """Shows progress, writes previews, and saves the edit every few seconds.

    A context: entered before the edit, left after it.

    Args:
        console: to show progress on.
        unfinished: where the edit is saved.
        writes: previews and the edit so far; of several ranks one does.
        fresh: begin again where an unfinished edit was another one.
        preview_every: steps between previews; 0 for none.
        write_preview: given a drawing of the edit so far.
    """

    def __init__(
        self,
        console: Console,
        unfinished: Unfinished,
        *,
        writes: bool,
        fresh: bool,
        preview_every: int,
        write_preview: Callable[[Any], None],
    ) -> None:
        self.console = console
        self.unfinished = unfinished
        self.writes = writes
        self.fresh = fresh
        self.preview_every = preview_every
        self.write_preview = write_preview
        self.seconds: dict[str, float] = {}
        """That each part of the work took in this run, by its title."""
        self.steps = 0
        """Done, and saved as far as they were worth it."""
        self._display: Display | None = None
        self._identity: dict[str, Any] = {}
        self._began = self._saved = time.monotonic()

    def __enter__(self) -> FileObserver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.close()

    def plan(self, works: Sequence[Work]) -> None:
        self._display = Display(works, self.console)
        self._display.__enter__()

    def start(self, work: Work, done: int = 0) -> None:
        self._began = time.monotonic()
        self._shown.begin(work, done)

    def advance(self, work: Work, done: float) -> None:
        self._shown.update(work, done)

    def finish(self, work: Work) -> None:
        self.seconds[work.title] = time.monotonic() - self._began
        self._shown.finish(work, self.seconds[work.title])

    def resume(self, identity: dict[str, Any], latents: Tensor) -> int:
        self._identity = identity
        if not self.writes:
            return 0
        try:
            self.steps = self.unfinished.load(identity, latents)
        except InputError:
            if not self.fresh:
                raise
            self.unfinished.remove()
        return self.steps

    def step(self, steps: int, latents: Tensor, draw: Callable[[], Any]) -> None:
        self.steps = steps
        if not self.writes:
            return
        # The first step at once: a folder without room is known before an hour has gone into the edit.
        if steps == 1 or time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES:
            self.unfinished.save(self._identity, steps, latents)
            self._saved = time.monotonic()
        if self.preview_every and steps % self.preview_every == 0:
            self.write_preview(draw())

    @property
    def _shown(self) -> Display:
        assert self._display is not None, "plan comes first"
        return self._display


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
