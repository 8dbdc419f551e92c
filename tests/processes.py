"""Several processes that were launched together, as `torchrun` launches them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing

# They are forks of a server that has imported all this once. It finds what is installed, and none of the
# tests' own modules; what it does not find it leaves out without a word.
multiprocessing.set_forkserver_preload(
    [
        "csd_nerf.nerf.methods",
        "nerfstudio.configs.method_configs",
        "csd_nerf.editors.edit_pictures",
        "csd_nerf.priors.latent_diffusion",
        "csd_nerf.priors.control_net",
    ]
)


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> None:
    """`work(*arguments)` in each of so many; the first that fails ends the others, and this by its error.

    One is this one, which has nobody to meet.
    """
    if count == 1:
        threads, folder = torch.get_num_threads(), Path.cwd()
        torch.set_num_threads(1)
        try:
            work(*arguments)
        finally:
            torch.set_num_threads(threads)
            os.chdir(folder)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _begin, (count, port, work, arguments), nprocs=count, start_method="forkserver"
    )


def _begin(rank: int, count: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    work(*arguments)
