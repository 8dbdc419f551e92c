"""Which threads work on a CPU.

Torch's threads wait for each other many times in every operation, and spin while they do: on a machine that has
other work they cost more than they bring, and they take the core from threads that could use it. So torch works
alone (`torch_alone`), the field's kernels share the cores between threads that sleep when they wait
(`beside_each_other`), and torch's own threads are for the long operations of a diffusion model, as long as they
are seen to bring something (`torch_together`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

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
