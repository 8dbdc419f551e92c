"""How the kernels of this package are compiled: once a machine, without a compiler, by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of arrays and numbers when it is first called, and keep the result for later."""
    return numba.njit(
        cache=True,
        nogil=True,  # so that threads run beside each other
        error_model="numpy",
        # Sums may be reordered, which is what lets them go many at a time. Not "nnan" and "ninf": a weight
        # that is not a number must show in the colours.
        fastmath={"reassoc", "contract", "arcp", "nsz", "afn"},
    )(function)
