"""How long a stage trains, and how it survives being killed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csd_nerf.files import whole_file
from training.parallel import Worker

SAVE_SECONDS = 180


@dataclass(frozen=True)
class Budget:
    """A number of steps, or of minutes where `minutes` is given (then the result hangs on the machine)."""

    steps: int
    minutes: float | None = None


@dataclass(frozen=True)
class Job:
    """The training of a stage: who does it, in which folder, for how long, and from which seed."""

    worker: Worker
    work: Path
    budget: Budget
    seed: int


class Progress:
    """The clock of one stage. `fraction` runs from 0 to 1 over the budget, also across restarts."""

    def __init__(self, budget: Budget, worker: Worker) -> None:
        self.budget = budget
        self.worker = worker
        self.step = 0
        self._earlier_seconds = 0.0
        self._started = time.monotonic()
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent in this stage, earlier runs included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def fraction(self) -> float:
        """Share of the budget that is used; 1 or more: stop. The same in every process."""
        if self.budget.minutes is None:
            return self.step / self.budget.steps
        return self.worker.leaders(self.seconds / (60 * self.budget.minutes))

    def save_is_due(self) -> bool:
        """Whether the leading process should write a checkpoint now."""
        if not self.worker.leads or time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.step = state["step"]
        self._earlier_seconds = state["seconds"]


def learning_rate(fraction: float, step: int, peak: float, warmup_steps: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
    return peak * min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * cosine)


def save_whole(data: object, path: Path) -> None:
    """`torch.save` that never leaves half a file behind."""
    with whole_file(path) as partial:
        torch.save(data, partial)
