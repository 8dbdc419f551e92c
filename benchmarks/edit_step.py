"""Time what an edit is made of, part by part, and measure its peak memory against the number of views.

    python benchmarks/edit_step.py                                    # csd-edit-tiny on the CPU
    python benchmarks/edit_step.py --particles 2 4 8 16               # memory against views
    python benchmarks/edit_step.py --route gradient --gradient-share 1.0 0.5 0.25
    python benchmarks/edit_step.py --full-size --device cuda --render-size 512

Of the loop, `round` is the drawing and editing of views, which draw, encode, unet, transport and decode are
parts of; fit, backward and optimizer are those of one fit, and `step` is a fit with its share of a round. Of
the published gradient's route, every part is of one step.

`--full-size` takes nerfacto's full field and a U-Net and autoencoder of InstructPix2Pix's sizes with
random weights: speed and memory do not depend on what the weights say. Peak memory is, on a CPU, the most
that tensors take in a round or a step beyond what was there before it (the process itself grows by what the
allocator does not give back); on a GPU, all that is in use of it. Every setting runs in a process of its own.
The scene is the procedural one, untrained.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro

sys.path += [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parent)]

from full_size import random_prior  # noqa: E402
from memory import peak_bytes  # noqa: E402

from csd_nerf.nerf.cost import memory_in_use  # noqa: E402

PARTS = {
    "loop": (
        "draw",
        "encode",
        "unet",
        "transport",
        "decode",
        "round",
        "fit",
        "backward",
        "optimizer",
        "step",
    ),
    "gradient": ("draw", "encode", "unet", "transport", "backward", "optimizer", "step"),
}
"""Columns of the table, by route."""


@dataclass
class Setting:
    """One row of the table."""

    route: Literal["loop", "gradient"]
    particles: int
    gradient_share: float
    render_size: int
    full_size: bool
    device: str
    steps: int


@dataclass
class Options:
    """Which settings to run: every number of particles with every gradient share."""

    route: Literal["loop", "gradient"] = "loop"
    """How the edit reaches the scene."""
    particles: tuple[int, ...] = (4,)
    """Views of a round, or of a step of the route gradient."""
    gradient_share: tuple[float, ...] = (1.0,)
    """Share of the pixels that sends its gradient back; of the route gradient alone."""
    render_size: int = 64
    """Side of the views, in pixels."""
    full_size: bool = False
    """Full-size field and prior, with random weights."""
    device: str = "cpu"
    """cpu or cuda."""
    steps: int = 10
    """Rounds timed, each with a fit, or steps; after two that are not."""
    out: Path | None = None
    """Also write the rows as JSON."""


def main(options: Options) -> None:
    rows = []
    columns = PARTS[options.route]
    print(f"{'views':>5} {'share':>5} " + " ".join(f"{part:>9}" for part in columns) + "   (ms)   peak MiB")
    for particles in options.particles:
        for share in options.gradient_share:
            setting = Setting(
                options.route,
                particles,
                share,
                options.render_size,
                options.full_size,
                options.device,
                options.steps,
            )
            command = [sys.executable, __file__, "--row", json.dumps(asdict(setting))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({**asdict(setting), **row})
            times = " ".join(f"{row['milliseconds'][part]:9.1f}" for part in columns)
            print(f"{particles:5d} {share:5.2f} {times} {row['peak_mib']:17.0f}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


def run_row(setting: Setting) -> dict[str, Any]:
    """Build the pipeline and time its steps: medians in milliseconds, and the peak in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = begun_edit(setting, Path(folder))
        optimizer = torch.optim.Adam(
            [p for group in pipeline.get_param_groups().values() for p in group], lr=0.0
        )
        every = pipeline.config.fits_per_round if setting.route == "loop" else 1
        warm_up = 2
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(setting.steps + warm_up):
            if number == warm_up:
                seconds.clear()
            for part, duration in timed_step(setting, pipeline, optimizer, number * every).items():
                seconds[part].append(duration)

        def step_once() -> None:
            step = (setting.steps + warm_up) * every  # a round begins with it
            sum(pipeline.get_train_loss_dict(step)[1].values()).backward()

        peak = peak_bytes(step_once) if setting.device == "cpu" else memory_in_use(setting.device)
    median = {part: 1000 * sorted(values)[len(values) // 2] for part, values in seconds.items()}
    if setting.route == "loop":
        fit = median["fit"] + median["backward"] + median["optimizer"]
        median["step"] = median["round"] / every + fit
    return {"milliseconds": median, "peak_mib": peak / 2**20}


def begun_edit(setting: Setting, folder: Path) -> Any:
    """The pipeline of an edit that is about to make its first step."""
    from csd_nerf.nerf.methods import METHODS
    from csd_nerf.scenes.dataset import write_dataset

    config = copy.deepcopy(METHODS["csd-edit" if setting.full_size else "csd-edit-tiny"].pipeline)
    config.datamanager.data = write_dataset(folder / "scene", views=max(2 * setting.particles, 24), size=64)
    config.datamanager.photo_size = None
    config.route, config.gradient_share = setting.route, setting.gradient_share
    config.particles, config.render_size = setting.particles, setting.render_size
    config.prompt, config.picture_views, config.picture_size = "make it night", 1, 32
    torch.manual_seed(0)
    pipeline = config.setup(device=setting.device, test_mode="val")
    with full_size_prior(setting.device) if setting.full_size else nullcontext():
        pipeline.begin_edit(pipeline.state_dict(), seed=0, max_steps=1000, origin="random weights")
    pipeline.train()
    return pipeline


def timed_step(
    setting: Setting, pipeline: Any, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """Seconds by part of a step, with the round that begins with it where there are rounds."""
    with timed_parts(setting.device, pipeline) as parts:
        start = _now(setting.device)
        with torch.autocast(setting.device, enabled=setting.device == "cuda"):
            _, losses, _ = pipeline.get_train_loss_dict(step)
        backward = _now(setting.device)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        update = _now(setting.device)
        optimizer.step()
        end = _now(setting.device)
    own = {"backward": update - backward, "optimizer": end - update}
    if setting.route == "gradient":
        own["step"] = end - start
    return {**parts, **own}


@contextmanager
def timed_parts(device: str, pipeline: Any) -> Iterator[dict[str, float]]:
    """Time the functions that a step is made of, where it calls them; yields seconds by part."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, owner: Any, name: str) -> Any:
        function = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = _now(device)
            result = function(*args, **kwargs)
            seconds[part] += _now(device) - start
            return result

        return patch.object(owner, name, wrapped)

    with ExitStack() as timers:
        for part, owner, name in functions_of(pipeline):
            timers.enter_context(timed(part, owner, name))
        yield seconds


def functions_of(pipeline: Any) -> list[tuple[str, Any, str]]:
    """The functions that a step is made of: which part each is, where it is called, and by which name."""
    loop, objective = (
        sys.modules[f"csd_nerf.{name}"] for name in ("nerf.edit_pipeline", "distillation.objective")
    )
    prior = pipeline._edit.prior
    return [
        ("draw", loop, "render_views"),
        ("draw", loop, "draw"),
        ("encode", prior, "encode"),
        ("decode", prior, "decode"),
        ("unet", prior, "predict_noise"),
        ("transport", objective, "stein_kernel"),
        ("transport", objective, "stein_direction"),
        ("round", pipeline, "_begin_round"),
        ("round", pipeline, "_check_followed"),  # draws a view, too
        ("fit", pipeline._edit.fit, "losses"),
    ]


@contextmanager
def full_size_prior(device: str) -> Iterator[None]:
    """Let `load_prior` give a prior of InstructPix2Pix's architecture with random weights."""
    with patch("csd_nerf.priors.load_prior", lambda name, **options: random_prior(device)):
        yield


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(run_row(Setting(**json.loads(sys.argv[2])))))
    else:
        main(tyro.cli(Options))
