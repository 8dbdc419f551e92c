"""Data-parallel training in a few processes of one thread each, or in one process on a GPU.

Two one-thread processes that average gradients are faster than one two-thread process on a CPU, and do
not stall when something else runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from csd_nerf.seeds import step_seed


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that train the same model on different samples."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def leaders(self, value: float) -> float:
        """`value` as the leading process sees it, for decisions that hang on a clock."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.barrier()

    def generator(self, seed: int, step: int) -> torch.Generator:
        """Random numbers of one step. They hang on nothing before it, so a resumed run repeats them."""
        mixed = step_seed(seed, step) * 64 + self.rank
        return torch.Generator().manual_seed(mixed)


def _enter(
    rank: int, count: int, meeting_file: str, device: str, work: Callable[..., None], arguments: Any
) -> None:
    # A shell starts background jobs deaf to SIGINT, by which torch tells children that their parent died.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    store = dist.FileStore(meeting_file, count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(hours=3))
    try:
        work(Worker(rank, count, torch.device(device)), arguments)
    finally:
        dist.destroy_process_group()


def run(
    work: Callable[[Worker, Any], None], arguments: Any, *, processes: int, device: str, folder: Path
) -> None:
    """Call `work(worker, arguments)` in each of `processes` processes; `folder` holds their meeting file."""
    if processes == 1:
        work(Worker(0, 1, torch.device(device)), arguments)
        return
    meeting_file = folder / f"processes-{os.getpid()}"
    torch.multiprocessing.spawn(
        _enter, args=(processes, str(meeting_file), device, work, arguments), nprocs=processes
    )
    meeting_file.unlink(missing_ok=True)


def copy_to_all(tensors: Iterable[Tensor], worker: Worker) -> None:
    """Give every process the leading process's values."""
    if worker.count > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
