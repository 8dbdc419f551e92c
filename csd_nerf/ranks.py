"""One edit over several processes, called ranks: who does which share, and how shares come together.

Every rank has field, prior and the same random numbers, and goes through the same steps. Work that has rows
(views, rows of the U-Net, rays) is cut into shares, of which each rank does its own. Views and what the
diffusion model says are gathered without a gradient, so that every rank goes on with all of it; of rays, the
gradients of the parameters are summed. So a rank knows what one process alone would know, to rounding.

In one process all of this does nothing. Processes are begun by `launch` or `torchrun`. When one of them ends
before its time, what the others ask of each other raises `Parted`, and they are on their own.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from csd_nerf.errors import is_out_of_memory

Value = TypeVar("Value")
Rows = TypeVar("Rows", Tensor, tuple[Tensor, ...])

_is_alone = False  # the others are gone
_is_to_end = False  # somebody said so
_speaking = threading.local()  # of a thread: the channel that it talks by, if not that of all


class Parted(SystemExit):
    """The ranks are no longer together. Not caught, it ends the process with a word, and status 1.

    From then on this rank is one process by itself, which may save what it has: as much as any other has.
    """


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Of this rank, 0-based."""
    return int(os.environ["RANK"]) if launched() else 0


def leads() -> bool:
    """Whether this is the rank that writes, prints and serves the viewer."""
    return number() == 0 or _is_alone


def local() -> int:
    """Of this rank among those of its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def own_device(device: str, place: int | None = None) -> str:
    """The device of this rank, where the first rank of every machine has a certain one.

    Args:
        device: of the first; the others have the GPUs that come after it.
        place: of another rank among those of its machine, 0-based.

    Example:
        >>> own_device("cuda:4", place=2), own_device("cpu", place=2)
        ('cuda:6', 'cpu')
    """
    first = torch.device(device)
    if first.type != "cuda":
        return device
    return f"cuda:{(first.index or 0) + (local() if place is None else place)}"


def launched() -> bool:
    """Whether this process was begun as one of several, by `launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def join(device_type: str) -> None:
    """Meet the others; once, in a process that was launched.

    Told to end, as `torchrun` tells those that are left when one has died, it does so when it next has
    something to say to the others, and not in the middle of a change.

    Args:
        device_type: cuda or cpu; decides how ranks talk to each other.
    """
    if dist.is_initialized():
        return
    if device_type == "cuda":
        torch.cuda.set_device(local())
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    atexit.register(_leave)
    signal.signal(signal.SIGTERM, _note_the_end)
    CONSOLE.quiet = not leads()


def launch(devices: int, machines: int, machine: int, address: str) -> int:
    """Run this program again in several processes, and wait for them. Returns their exit status.

    Args:
        devices: processes on this machine.
        machines: on which this is done.
        machine: number of this one, 0-based.
        address: `tcp://HOST:PORT` of machine 0; not looked at where it is the only one.
    """
    where = ["--standalone"]
    if machines > 1:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        where = [f"--nnodes={machines}", f"--node-rank={machine}"]
        where += [f"--master-addr={host}", f"--master-port={port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={devices}"]
    return subprocess.run([*torchrun, *sys.argv], check=False).returncode


def share(total: int) -> slice:
    """The rows that this rank works on, of as many; shares differ by one row at most.

    Example:
        >>> share(5)
        slice(0, 5, None)
    """
    return _shares(total)[number()]


def channel() -> Any:
    """A way to talk beside that of all, for a thread; every rank makes one at the same time."""
    return dist.new_group() if count() > 1 else None


@contextmanager
def speaking_by(way: Any) -> Iterator[None]:
    """Within it, this thread talks by a `channel`: what two threads say does not get mixed up.

    Should it raise `Parted`, the main thread is told when it asks what came of the thread, and calls `part`.
    """
    _speaking.channel = way
    try:
        yield
    finally:
        _speaking.channel = None


def part() -> None:
    """Be on one's own from now on: what a thread heard that was `Parted` from the others."""
    global _is_alone
    _leave()
    _is_alone, CONSOLE.quiet = True, False


def by_share(work: Callable[..., Rows], *rows: Any) -> Rows:
    """`work(*rows)`, every rank doing its share of the rows; no gradient.

    Rows that are fewer than the ranks are worked on by all.

    Args:
        work: row by row, so that the result of all is that of the shares, one after the other; a tensor, or
            several.
        rows: things of as many rows each, or None.
    """
    total = len(rows[0])
    if count() == 1 or total < count():
        return work(*rows)
    mine = share(total)
    done = work(*(None if row is None else row[mine] for row in rows))
    if isinstance(done, Tensor):
        return of_all(done, total)
    return tuple(of_all(part, total) for part in done)


def groups(things: Iterable[Value]) -> Iterator[list[Value]]:
    """Things in their order, by as many as there are ranks: one for each, for things that come one by one."""
    group: list[Value] = []
    for thing in things:
        group.append(thing)
        if len(group) == count():
            yield group
            group = []
    if group:
        yield group


def of_all(mine: Tensor, total: int) -> Tensor:
    """The rows of all shares, of the rows of this rank's; no gradient.

    Args:
        mine: as many rows as `share(total)`.
        total: at least as many as there are ranks.
    """
    if count() == 1:
        return mine.detach()
    lengths = [part.stop - part.start for part in _shares(total)]
    padded = mine.new_zeros(max(lengths), *mine.shape[1:])
    padded[: len(mine)] = mine.detach()
    everything = [torch.empty_like(padded) for _ in lengths]
    if padded.numel():  # of what has no channels there is nothing to say
        with _together() as way:
            dist.all_gather(everything, padded, way)
    return torch.cat([part[:length] for part, length in zip(everything, lengths, strict=True)])


def as_first(value: Value) -> Value:
    """What the first rank says, on all of them."""
    if count() == 1:
        return value
    said = [value]
    with _together() as way:
        dist.broadcast_object_list(said, group=way)
    return said[0]


def any_says(yes: bool) -> bool:
    """Whether it is so on one of the ranks at least: what may be so on some of them all do together."""
    if count() == 1:
        return yes
    said = torch.tensor(float(yes), device=_place_of_words())
    with _together() as way:
        dist.all_reduce(said, group=way)
    return bool(said)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Let every rank have the sum of all ranks' gradients, in place."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for kind in sorted({str(gradient.dtype) for gradient in gradients}):
        alike = [gradient for gradient in gradients if str(gradient.dtype) == kind]
        flat = _flatten_dense_tensors(alike)
        with _together() as way:
            dist.all_reduce(flat, group=way)
        for gradient, whole in zip(alike, _unflatten_dense_tensors(flat, alike), strict=True):
            gradient.copy_(whole)


def with_values_of_all(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses whose values are the sums over the ranks, with the gradients of this rank's share."""
    if count() == 1:
        return dict(losses)
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    with _together() as way:
        dist.all_reduce(values, group=way)
    pairs = zip(losses.items(), values, strict=True)
    return {name: loss + (value - loss).detach() for (name, loss), value in pairs}


def _shares(total: int) -> list[slice]:
    ranks = count()
    ends = [total * rank // ranks for rank in range(ranks + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def _place_of_words() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _together() -> Iterator[Any]:
    """Around all that ranks say to each other; the channel to say it by.

    Raises:
        Parted: somebody is gone, or this process was told to end.
    """
    way = getattr(_speaking, "channel", None)
    try:
        if not _is_to_end:
            yield way
            return
        reason = "this process was told to end"
    except RuntimeError as error:  # of gloo and of NCCL, whatever it is
        if is_out_of_memory(error):
            raise
        reason = "another process of the run has ended"
    if way is None:
        part()
    raise Parted(f"Process {number()}: {reason}.")


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _note_the_end(*_: Any) -> None:
    global _is_to_end
    _is_to_end = True
