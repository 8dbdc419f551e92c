"""What people ask of a run while it goes on, and what they may change in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from csd_nerf.errors import InputError

Value = TypeVar("Value")


@dataclass
class Setting(Generic[Value]):
    """A value that the next step or round takes as it is by then."""

    value: Value


class Requests:
    """A queue from the threads of a viewer to the one that trains.

    What is asked for is done between two steps: nothing of a step is changed under its hands, and nobody
    waits for a step to end.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Callable[[], None], Callable[[InputError], None]]] = SimpleQueue()

    def ask(self, do: Callable[[], None], refused: Callable[[InputError], None]) -> None:
        """Have something done soon.

        Args:
            do: what; an `InputError` that it raises ends nothing.
            refused: is told of that.
        """
        self._waiting.put((do, refused))

    def serve(self) -> None:
        """Do what was asked for, in its order."""
        while True:
            try:
                do, refused = self._waiting.get_nowait()
            except Empty:
                return
            try:
                do()
            except InputError as error:
                refused(error)
