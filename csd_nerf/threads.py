"""Which threads work on a CPU.

Torch's threads wait for each other in every operation, and spin while they do: on a machine that has other
work they cost more than they bring, and they take the core from threads that could use it. So where a field
is trained torch works with one (`one_for_torch`), the field's kernels share the cores between threads that
sleep when they wait (`beside_each_other`), and torch's own are for the long operations of a diffusion
model, as long as they are seen to bring something (`all_for_torch`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from nerfstudio.utils.rich_utils import CONSOLE

CORES = torch.get_num_threads()
"""What the machine, or OMP_NUM_THREADS, allows; read before anything here changes it."""


def runs(length: int, block: int) -> list[tuple[int, int]]:
    """One run (first, last) of whole blocks for each core, nearly equal in length."""
    blocks = -(-length // block)
    lanes = max(1, min(CORES, blocks))
    edges = [lane * blocks // lanes * block for lane in range(lanes)]
    return list(zip(edges, [*edges[1:], length], strict=True))


def beside_each_other(work: Callable[[int, tuple[int, int]], None], parts: list[tuple[int, int]]) -> None:
    """`work(lane, part)` for all parts, each in a thread of its own, the first in the caller's.

    `work` must release the interpreter's lock.
    """
    waiting = [_pool(len(parts) - 1).submit(work, lane, part) for lane, part in enumerate(parts) if lane]
    work(0, parts[0])
    for other in waiting:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="csd_nerf")


def one_for_torch(device: torch.device | str) -> None:
    """Let torch work with one thread from now on, if a field is on this device."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)


@contextmanager
def all_for_torch() -> Iterator[None]:
    """For a while, let torch work with all cores, if that is faster now than one: for a diffusion model."""
    before = torch.get_num_threads()
    if before == CORES:
        yield
        return
    try:
        torch.set_num_threads(CORES if _faster_together() else before)
        yield
    finally:
        torch.set_num_threads(before)


def _faster_together() -> bool:
    """Whether a network of small layers is, on this machine as busy as it is; says so when it is not."""
    alone, together = _seconds(1), _seconds(CORES)
    if together > 1.5 * alone:  # beyond what chance does to so short a time
        _say_busy()
    return together < alone


def _seconds(threads: int) -> float:
    """The quickest of a few passes through layers of the size of a small U-Net's."""
    torch.set_num_threads(threads)
    pictures, kernel = torch.ones(8, 64, 16, 16), torch.ones(64, 64, 3, 3)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(2):
            F.silu(F.conv2d(pictures, kernel, padding=1))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@cache
def _say_busy() -> None:
    CONSOLE.print("Other programs keep the cores busy: torch works with one thread while they do.")
