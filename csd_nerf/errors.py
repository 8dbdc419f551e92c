"""The one exception for bad input, how to check for it, and where it becomes a message, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS_BAD_INPUT = 2

USUAL_HINT = "change it, or leave it out"
"""What to do about an option's value that cannot be used."""


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


def check(holds: bool, problem: str, *, expected: str, got: object, hint: str = USUAL_HINT) -> None:
    """Refuse what the user gave unless it is right.

    Args:
        holds: whether it is.
        problem: the option or setting by itself, such as `--views`, of which it is then said that it cannot
            be used; or what is wrong, in one clause.
        expected: what would have been right.
        got: what came instead.
        hint: what to do about it.

    Raises:
        InputError: unless it holds.

    Example:
        >>> check(12 >= 1, option("views"), expected="at least 1", got=12)
    """
    if not holds:
        clause = problem if " " in problem else f"{problem} cannot be used"
        raise InputError(clause, expected=expected, got=str(got), hint=hint)


def check_at_least(name: str, value: float | None, least: int, hint: str = USUAL_HINT) -> None:
    """Refuse an option's number below `least`; None is left to the default.

    Args:
        name: of the option, with underscores.
        value: given.
        least: allowed.
        hint: what to do about it.

    Raises:
        InputError: it is below, or not a number.
    """
    check(
        value is None or value >= least,
        f"{option(name)} is too small",
        expected=f"at least {least}",
        got=value,
        hint=hint,
    )


def option(name: str) -> str:
    """How a setting is written on the command line.

    Example:
        >>> option("pipeline.render_size")
        '--pipeline.render-size'
    """
    return f"--{name.replace('_', '-')}"


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch, its CPU allocator, a CUDA library or tiny-cuda-nn ran out of memory.

    Each says so in its own way, some by the name of a status, such as CUDA_ERROR_OUT_OF_MEMORY.
    """
    import torch

    text = str(error).lower().replace("_", " ")
    said = any(words in text for words in ("out of memory", "can't allocate memory", "alloc failed"))
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def memory_explained(*, expected: str, hint: str) -> Iterator[None]:
    """Within it, memory that runs out is an `InputError`.

    Args:
        expected: what there must be room for.
        hint: what to turn down.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        got = str(error).partition("\n")[0] or type(error).__name__
        raise InputError("memory ran out", expected=expected, got=got, hint=hint) from error
