"""Work on a CPU's cores beside each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def runs(samples: int, block: int) -> list[tuple[int, int]]:
    """One run (first, last) of whole blocks for each thread that torch may use, nearly equal in length."""
    blocks = -(-samples // block)
    lanes = max(1, min(torch.get_num_threads(), blocks))
    edges = [lane * blocks // lanes * block for lane in range(lanes)]
    return list(zip(edges, [*edges[1:], samples], strict=True))


def beside_each_other(work: Callable[[int, tuple[int, int]], None], parts: list[tuple[int, int]]) -> None:
    """`work(lane, part)` for all parts, each in a thread of its own, the first in the caller's.

    Threads that wait here sleep, which leaves the core to others. `work` must release the interpreter's lock.
    """
    waiting = [_pool(len(parts) - 1).submit(work, lane, part) for lane, part in enumerate(parts) if lane]
    work(0, parts[0])
    for other in waiting:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="csd_nerf-lane")
