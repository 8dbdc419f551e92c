"""What the processes of one edit say to each other: bytes and time of a round and of a fit.

    python benchmarks/communication.py

Processes on this machine that talk by gloo run rounds and fits of `csd-edit` by default, with the field, the
views and the latents of their real sizes. What is drawn and what the diffusion model says are made up, for it
takes long and is sent all the same. Bytes are those that a process is sent: of rows all but its own, of sums
2 (P - 1) / P times the tensor, as a ring needs. Times are medians of the first process, which begins to talk
when all are there.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import tyro

sys.path.append(str(Path(__file__).resolve().parent))

import gpu  # noqa: E402
from full_size import random_prior  # noqa: E402

from csd_nerf import ranks  # noqa: E402
from csd_nerf.nerf.rendering import StillView  # noqa: E402
from csd_nerf.priors.wrapped import Wrapped  # noqa: E402

PHOTOS = 72
"""Of the scene: no fewer than the views of a round."""


@dataclass
class Options:
    """What to measure."""

    processes: tuple[int, ...] = (2, 4)
    """Numbers of processes."""
    views: tuple[int, ...] = (4, 16, 64)
    """Views of a round."""
    rounds: int = 3
    """Timed of every kind, after one that is not; each with a fit."""
    small: bool = False
    """Small views and a small field, to see that this works."""
    out: Path = Path("benchmarks/results/communication.json")
    """File for the figures."""


def main(options: Options) -> None:
    if ranks.launched():
        be_a_rank(options)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    print(f"{'processes':>9} {'views':>6} {'round MB':>9} {'ms':>7} {'fit MB':>9} {'ms':>7}")
    for count in options.processes:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, *torchrun, __file__, *(["--small"] if options.small else [])]
        command += ["--views", *map(str, options.views), "--rounds", str(options.rounds)]
        subprocess.run([*command, "--out", str(options.out)], check=True, stdout=subprocess.DEVNULL)
        for row in json.loads(options.out.read_text()):
            rows.append(row)
            figures = (row[part][of] for part in ("round", "fit") for of in ("megabytes", "milliseconds"))
            print("{:9} {:6} {:9.2f} {:7.1f} {:9.2f} {:7.1f}".format(count, row["views"], *figures))
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def be_a_rank(options: Options) -> None:
    """Measure, as one of several processes; the first writes the rows."""
    torch.set_num_threads(1)
    ranks.join("cpu")
    prior = MadeUp(random_prior("cpu", small=True))
    settings = gpu.Options(device="cpu", small=options.small)
    rows = []
    with tempfile.TemporaryDirectory() as folder, patch("csd_nerf.nerf.edit_loop.render_still", made_up_view):
        for views in options.views:
            rows.append(measured(settings, options.rounds, views, prior, Path(folder)))
    if ranks.leads():
        options.out.write_text(json.dumps(rows))


def measured(settings: gpu.Options, rounds: int, views: int, prior: Any, folder: Path) -> dict[str, Any]:
    """A row: of so many views, what is said in a round and in a fit."""
    with patch.object(gpu, "PHOTOS", PHOTOS):
        pipeline = gpu.begun_edit(gpu.Setting(views, "torch", "float32"), settings, prior, folder)
    said: dict[str, list[Said]] = {"round": [], "fit": []}
    parameters = [value for group in pipeline.get_param_groups().values() for value in group]
    for number in range(1 + rounds):
        with counted() as of_round:
            pipeline._begin_round(pipeline._edit, number)
        with counted() as of_fit:
            losses, _ = pipeline._edit.fit.losses(pipeline.model, pipeline._edit.targets)
            pipeline.model.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            ranks.sum_gradients(parameters)
        said["round"].append(of_round)
        said["fit"].append(of_fit)
    figures = {
        part: {
            "megabytes": statistics.median(each.bytes for each in kind[1:]) / 1e6,
            "milliseconds": 1000 * statistics.median(each.seconds for each in kind[1:]),
        }
        for part, kind in said.items()
    }
    return {"processes": ranks.count(), "views": views, **figures}


@dataclass
class Said:
    """Of a piece of work: what this process was sent, and how long it talked."""

    bytes: float = 0
    seconds: float = 0


@contextmanager
def counted() -> Iterator[Said]:
    """Within it, what the ranks say to each other is counted."""
    said, count = Said(), ranks.count()
    of_rows, of_sums = dist.all_gather, dist.all_reduce

    def all_gather(parts: list[torch.Tensor], mine: torch.Tensor, group: Any) -> None:
        _timed(said, (count - 1) * mine.nbytes, of_rows, parts, mine)

    def all_reduce(value: torch.Tensor, group: Any) -> None:
        _timed(said, 2 * (count - 1) / count * value.nbytes, of_sums, value)

    with patch.object(dist, "all_gather", all_gather), patch.object(dist, "all_reduce", all_reduce):
        yield said


def _timed(said: Said, sent: float, work: Any, *arguments: Any) -> None:
    dist.barrier()  # of the talk alone: none waits in it for another
    began = time.perf_counter()
    work(*arguments)
    said.seconds += time.perf_counter() - began
    said.bytes += sent


class MadeUp(Wrapped):
    """Answers as large as the prior's, out of nothing."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        height, width = (side // self.vae_factor for side in images.shape[2:])
        return _anything(len(images), self.latent_channels, height, width)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        height, width = (side * self.vae_factor for side in latents.shape[2:])
        return torch.full((len(latents), 3, height, width), 0.5)

    def embed(self, prompts: Any) -> Any:
        return self.prior.embed(prompts)

    def condition(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(images)

    def predict_noise(self, noisy: torch.Tensor, t: int, text: Any, condition: Any) -> torch.Tensor:
        return _anything(*noisy.shape)

    def self_attention_features(self, noisy: torch.Tensor, t: int, text: Any, condition: Any) -> Any:
        raise NotImplementedError("no method that is measured here looks at features")


def _anything(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def made_up_view(model: Any, rays: Any) -> StillView:
    """A view that nothing was drawn for."""
    height, width = rays.shape
    return StillView(torch.full((3, height, width), 0.5), *torch.ones(2, 1, height, width))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
