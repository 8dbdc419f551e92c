"""How a program ends that a user has begun: in words, whatever its console can show.

For the commands of this package, and for those of nerfstudio, which load its methods.
"""

from __future__ import annotations

import io
import sys
from types import TracebackType

from csd_nerf.errors import InputError, exit_on_input_error


def begin_program() -> None:
    """Prepare a program, once or more often.

    An `InputError` that nothing catches ends it with its message and exit status 2; other exceptions are left
    to whatever showed them before. Letters that the console does not have are shown as question marks, as
    those of a Windows console or of a file that is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not isinstance(sys.excepthook, _InWords):
        sys.excepthook = _InWords()


class _InWords:
    """An excepthook."""

    def __init__(self) -> None:
        self._usual = sys.excepthook

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, InputError):
            self._usual(kind, error, trace)
            return
        with exit_on_input_error():
            raise error
