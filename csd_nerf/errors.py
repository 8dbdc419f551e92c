"""The one exception for bad input, and the one place where it becomes a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS_BAD_INPUT = 2


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        problem: what is wrong, in one clause.
        expected: what would have been right.
        got: what came instead.
        hint: what to do about it.
    """

    def __init__(self, problem: str, *, expected: str, got: str, hint: str) -> None:
        self.problem = problem
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(f"{problem}\n  expected: {expected}\n  got:      {got}\n  do this:  {hint}")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError` into its message on stderr and exit status 2, without a traceback.

    Example:
        >>> with exit_on_input_error():
        ...     pass
    """
    from rich.console import Console
    from rich.text import Text

    try:
        yield
    except InputError as error:
        console = Console(stderr=True)
        console.print("Error:", style="bold red", end=" ")
        console.print(Text(str(error)), soft_wrap=True)
        raise SystemExit(EXIT_STATUS_BAD_INPUT) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, its CPU allocator or tiny-cuda-nn ran out of memory: each says so in its own way."""
    import torch

    said = any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))
    return said or isinstance(error, torch.OutOfMemoryError)


@contextmanager
def memory_explained(*, expected: str, hint: str) -> Iterator[None]:
    """Within it, memory that runs out is an `InputError`.

    Args:
        expected: what there must be room for.
        hint: what to turn down.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        got = str(error).splitlines()[0]
        raise InputError("memory ran out", expected=expected, got=got, hint=hint) from error
