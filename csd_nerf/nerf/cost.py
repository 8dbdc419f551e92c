"""What an edit has cost so far, kept as `cost.json` in its run folder, over all its resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csd_nerf.display import minutes
from csd_nerf.errors import InputError
from csd_nerf.files import write_text

FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Of an edit up to its newest checkpoint.

    Attributes:
        steps: done.
        unet_evaluations: rows that the U-Net has evaluated.
        seconds: wall time of the steps, pictures and checkpoints on the way and pauses included; without
            start-up, final pictures and turntable.
        peak_memory_mib: most memory in use at a time, in MiB: of the scene's GPU, by all that runs on it, or
            of the whole process on a CPU. None where the system does not tell.
        device: the GPU's name, or `cpu`.
    """

    steps: int
    unet_evaluations: int
    seconds: float
    peak_memory_mib: float | None
    device: str

    def in_words(self) -> str:
        """Such as `240 steps in 18 s on cpu, 480 U-Net evaluations, 905 MiB`."""
        parts = [f"{self.steps} steps in {minutes(self.seconds)} on {self.device}"]
        parts += [f"{self.unet_evaluations} U-Net evaluations"]
        if self.peak_memory_mib is not None:
            parts.append(f"{self.peak_memory_mib:.0f} MiB")
        return ", ".join(parts)


NOTHING = Cost(steps=0, unet_evaluations=0, seconds=0.0, peak_memory_mib=None, device="cpu")
"""Of an edit that has not begun."""


class CostMeter:
    """Counts on from what an edit had cost before this process.

    Args:
        earlier: `NOTHING`, or what the run that is continued had cost.
        device: of the edit.
    """

    def __init__(self, earlier: Cost, device: torch.device | str) -> None:
        self._earlier = earlier
        self._device = torch.device(device)
        self._began = time.monotonic()
        self._most_on_gpu = 0

    @property
    def seconds(self) -> float:
        """Wall time of the edit up to now."""
        return self._earlier.seconds + time.monotonic() - self._began

    def look(self) -> None:
        """See how much memory is in use on a GPU, after each step."""
        if self._device.type == "cuda":
            self._most_on_gpu = max(self._most_on_gpu, memory_in_use(self._device))

    def total(self, *, steps: int, unet_evaluations: int) -> Cost:
        """The cost up to now.

        Args:
            steps: of the whole edit.
            unet_evaluations: of the whole edit.
        """
        on_gpu = self._device.type == "cuda"
        self.look()
        peaks = [self._earlier.peak_memory_mib, self._most_on_gpu / 2**20 if on_gpu else _peak_of_process()]
        return Cost(
            steps=steps,
            unet_evaluations=unet_evaluations,
            seconds=round(self.seconds, 2),
            peak_memory_mib=max((round(peak, 1) for peak in peaks if peak is not None), default=None),
            device=torch.cuda.get_device_name(self._device) if on_gpu else self._device.type,
        )


def write_cost(folder: Path, cost: Cost) -> None:
    """Write `cost.json` into a run folder, whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    write_text(folder / FILE, json.dumps(dataclasses.asdict(cost), indent=1) + "\n")


def read_cost(folder: Path) -> Cost | None:
    """What `cost.json` in a run folder says; None when the edit was made without one.

    Raises:
        InputError: the file is not as `write_cost` writes it.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        return _as_cost(json.loads(file.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:  # ValueError: also JSON's and UTF-8's
        raise InputError(
            f"{file} cannot be read",
            expected="what an edit has cost, as csd-nerf wrote it: numbers, and the device by name",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            hint="remove the file: the edit then counts as one whose cost nobody knows",
        ) from error


def _as_cost(saved: dict[str, Any]) -> Cost:
    cost = Cost(**saved)
    numbers = {"steps": cost.steps, "unet_evaluations": cost.unet_evaluations, "seconds": cost.seconds}
    if cost.peak_memory_mib is not None:
        numbers["peak_memory_mib"] = cost.peak_memory_mib
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise ValueError(f"{name}: {number!r}")
    if not isinstance(cost.device, str):
        raise ValueError(f"device: {cost.device!r}")
    return cost


def memory_in_use(gpu: torch.device | str) -> int:
    """Bytes of a GPU's memory that are taken, by whatever runs on it.

    Not what torch has allocated: tiny-cuda-nn has an arena of its own. As that and torch keep for later what
    they have once taken, the memory in use after a step is also the most within it.
    """
    free, total = torch.cuda.mem_get_info(gpu)
    return total - free


def _peak_of_process() -> float | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
