"""Rays a second of a scene's field on a CPU: the compiled kernels against torch and the machine.

    python benchmarks/cpu_field.py                       # csd-nerfacto-tiny, one thread and all
    python benchmarks/cpu_field.py --method csd-nerfacto

`torch` is nerfstudio's path with the hash grid of `csd_nerf/nerf/hash_grid.py`. Forward is a view without a
gradient, backward a step of a fit with nerfacto's regularisers, optimiser left out. Each round takes every
way in turn, so that a busy machine slows all alike; the quickest is reported. The limits are what one core
does of nothing but the multiply-adds of the networks, and of nothing but looking up the corners of the
grids' cells.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "nerf"))

from test_cpu_fields import nerfstudios_own, rays  # noqa: E402

from csd_nerf import threads  # noqa: E402
from csd_nerf.nerf.cpu_sampling import distortion_loss, interlevel_loss  # noqa: E402


@dataclass
class Options:
    """What to time."""

    method: str = "csd-nerfacto-tiny"
    """Whose field."""
    forward_rays: int = 4096
    """Of a view."""
    backward_rays: int = 1024
    """Of a fit."""
    rounds: int = 15
    """In which every way is timed once."""
    output: Path | None = None
    """A JSON file for the figures."""


def main(options: Options) -> dict[str, Any]:
    """Time everything, print a table, and return the figures: rays a second."""
    from csd_nerf.nerf.methods import METHODS

    torch.manual_seed(0)
    config: Any = copy.deepcopy(METHODS[options.method].pipeline.model)
    config.camera_optimizer.mode = "off"
    from nerfstudio.data.scene_box import SceneBox

    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model = config.setup(scene_box=box, num_train_data=1, metadata={}, device="cpu", grad_scaler=None)
    model.train()
    model.proposal_sampler.update_sched = lambda step: -1
    view, batch = rays(options.forward_rays), rays(options.backward_rays)
    for bundle in (view, batch):
        bundle.camera_indices.zero_()

    @torch.no_grad()
    def forward() -> None:
        model(view)

    def backward() -> None:
        model.zero_grad(set_to_none=True)
        outputs = model(batch)
        levels = outputs["weights_list"], outputs["ray_samples_list"]
        (outputs["rgb"].mean() + interlevel_loss(*levels) + 0.002 * distortion_loss(*levels)).backward()

    cores = threads.CORES
    ways: dict[str, tuple[int, int, Callable[[], AbstractContextManager[None]]]] = {
        "torch, 1 thread": (1, 1, lambda: nerfstudios_own(model)),
        f"torch, {cores} threads": (cores, 1, lambda: nerfstudios_own(model)),
        "kernels, 1 thread": (1, 1, nullcontext),
        f"kernels, {cores} threads": (1, cores, nullcontext),
    }
    best: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(lambda: float("inf")))
    for _ in range(options.rounds):
        for name, (torch_threads, lanes, path) in ways.items():
            torch.set_num_threads(torch_threads)
            threads.CORES = lanes
            with path():
                for part, work in (("forward", forward), ("backward", backward)):
                    best[name][part] = min(best[name][part], _seconds(work))
    threads.CORES = cores
    torch.set_num_threads(1)
    counts = {"forward": options.forward_rays, "backward": options.backward_rays}
    figures: dict[str, Any] = {
        name: {part: counts[part] / seconds for part, seconds in parts.items()}
        for name, parts in best.items()
    }
    figures |= _limits(model, options.rounds)
    _print(options.method, figures)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1), encoding="utf8")
    return figures


def _limits(model: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Rays a second if there were nothing but multiply-adds, or nothing but look-ups."""
    config = model.config
    proposal_samples = config.num_proposal_samples_per_ray[: config.num_proposal_iterations]
    multiply_adds, corners = 0, 0
    for network, samples in zip(model.proposal_networks, proposal_samples, strict=True):
        multiply_adds += samples * _weights(network)
        corners += samples * 8 * network.encoding.num_levels
    multiply_adds += config.num_nerf_samples_per_ray * _weights(model.field)
    corners += config.num_nerf_samples_per_ray * 8 * config.num_levels
    matrix = torch.ones(512, 512)
    rate = 512**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(rounds))
    table = torch.ones(2**config.log2_hashmap_size, dtype=torch.float64)  # an entry's two features
    entries = torch.randint(len(table), (1_000_000,))
    found = len(entries) / min(_seconds(lambda: table.take(entries)) for _ in range(rounds))
    # Backward: each once more for the inputs and once for the weights; and the table is read and written.
    return {
        f"limit of {rate / 1e9:.0f} G multiply-adds/s": {
            "forward": rate / multiply_adds,
            "backward": rate / multiply_adds / 3,
        },
        f"limit of {found / 1e6:.0f} M look-ups/s": {
            "forward": found / corners,
            "backward": found / corners / 3,
        },
    }


def _weights(module: Any) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print(method: str, figures: dict[str, dict[str, float]]) -> None:
    table = Table("", "forward, rays/s", "forward + backward, rays/s", title=method)
    for name, parts in figures.items():
        table.add_row(name, f"{parts['forward']:,.0f}", f"{parts['backward']:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
