"""Measuring how much memory a piece of work takes on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def allocations(work: Callable[[], object]) -> np.ndarray:
    """Bytes of every allocation (positive) and release (negative) while `work` runs, in order."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return np.array([event.nbytes() for event in events if event.name() == "[memory]"])


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` held at any time beyond what was there before."""
    return int(allocations(work).cumsum().max())
