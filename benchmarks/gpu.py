"""What an edit takes on a GPU: time and memory of a round, part by part, and of a whole edit.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --small      # to see that it works

One command, of 8 minutes at most. Nothing is downloaded: U-Net, autoencoder and text encoder have the sizes
of InstructPix2Pix, the field those of nerfacto, all with random weights, and the cameras are those of the
procedural scene. Speed and memory do not depend on what the weights say. Rounds of 2 to 16 views are measured
until memory runs out, which is recorded; then one of 4 with the autoencoder in float32, and where there is
tiny-cuda-nn, which is used where it is, one with fields of torch.

Of every part there are milliseconds (medians) and the memory in use on the whole device when it ends, with
torch's cache emptied before it; so tiny-cuda-nn's own memory counts, the CUDA context, and other programs. On
a CPU it is the most that this process has had by then. The parts of a round are draw, encode, unet (all steps
of the descent) and decode; a fit is one step of training, with its optimiser. The time of a whole edit by
default, `edit`, is NOT measured but extrapolated from these:

    rounds round + steps fit + photos photo + pictures draw

with a photo for each view of each round, and with pictures the before-and-after sheets and the turntable.
"""

from __future__ import annotations

import copy
import gc
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent))

from edit_step import functions_of  # noqa: E402
from full_size import PROMPT, random_prior  # noqa: E402

from csd_nerf.errors import InputError, exit_on_input_error, is_out_of_memory  # noqa: E402

PARTS = ("photo", "draw", "encode", "unet", "decode", "round", "fit")
"""Columns of the tables."""
USUAL_VIEWS = 4
WIDTH = 120
"""Least characters of a line of a table."""
FITS = 10
"""Fits timed with each round."""
PHOTOS = 24


@dataclass
class Options:
    """How long to measure what."""

    device: str = "cuda"
    """Where: cuda, cuda:1, or cpu."""
    small: bool = False
    """Small models and views, on which nothing can be learned but that this works."""
    views: tuple[int, ...] = (2, USUAL_VIEWS, 8, 16)
    """Views of a round, from few to many."""
    rounds: int = 3
    """Rounds timed of every kind, after one that is not."""
    minutes: float = 7.0
    """No new round begins after so long; what is begun is ended."""
    out: Path = Path("benchmarks/results/gpu.json")
    """File for the figures."""


@dataclass(frozen=True)
class Setting:
    """A row of the tables."""

    views: int
    fields: str  # "tcnn" or "torch"
    vae: str  # precision


def main(options: Options) -> None:
    _check(options)
    deadline = time.monotonic() + 60 * options.minutes
    before = used_mib(options.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prior = random_prior(options.device, small=options.small)
        began = _now(options.device)
        prior.embed([PROMPT, ""])
        text = 1000 * (_now(options.device) - began)
        for setting in settings_of(options, str(prior.vae.dtype).removeprefix("torch.")):
            fuller = [row for row in rows if row["out_of_memory"] and row["views"] <= setting.views]
            if fuller or time.monotonic() > deadline:
                rows.append({**asdict(setting), **nothing("memory" if fuller else "time")})
                continue
            torch.nn.Module.to(prior.vae, getattr(torch, setting.vae))  # without diffusers' warning
            rows.append({**asdict(setting), **measured(setting, options, prior, Path(folder), deadline)})
    report = {
        "machine": machine(options.device),
        "settings": {**asdict(options), "out": options.out.name},
        "memory_before_mib": before,
        "text_ms": text,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console()
    show(report, Console(width=max(console.width, WIDTH)))


def settings_of(options: Options, vae: str) -> list[Setting]:
    """The rows: numbers of views, then what else makes a difference."""
    fields = fields_of(options.device)
    rows = [Setting(views, fields, vae) for views in sorted(options.views)]
    usual = USUAL_VIEWS if USUAL_VIEWS in options.views else min(options.views)
    if vae != "float32":
        rows.append(Setting(usual, fields, "float32"))
    if fields != "torch":
        rows.append(Setting(usual, "torch", vae))
    return rows


def fields_of(device: str) -> str:
    """What the fields are computed with."""
    from nerfstudio.utils.external import TCNN_EXISTS

    return "tcnn" if TCNN_EXISTS and torch.device(device).type == "cuda" else "torch"


def nothing(reason: str | None) -> dict[str, Any]:
    """What is said of a row without figures: why there are none, "memory" or "time"; None of one with."""
    empty: dict[str, Any] = {"milliseconds": {}, "memory_mib": {}, "edit_seconds": None}
    return {"left_out": reason, "out_of_memory": None, **empty}


def measured(setting: Setting, options: Options, prior: Any, folder: Path, deadline: float) -> dict[str, Any]:
    """The figures of a row."""
    meter = Meter(options.device)
    try:
        pipeline = begun_edit(setting, options, prior, folder)
        measure(pipeline, meter, options, deadline)
        memory_ran_out = None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        memory_ran_out = meter.part or "start"
    pipeline = None
    gc.collect()
    meter.empty_cache()
    milliseconds = {part: 1000 * statistics.median(values) for part, values in meter.seconds.items()}
    whole = memory_ran_out is None and milliseconds.keys() >= set(PARTS)
    return {
        **nothing(None if whole or memory_ran_out else "time"),
        "out_of_memory": memory_ran_out,
        "milliseconds": milliseconds,
        "memory_mib": dict(meter.memory),
        "edit_seconds": edit_seconds(options, setting.views, milliseconds) if whole else None,
    }


def begun_edit(setting: Setting, options: Options, prior: Any, folder: Path) -> Any:
    """The pipeline of an edit that is about to make its first step."""
    from csd_nerf.scenes.dataset import write_dataset

    config = copy.deepcopy(method(options).pipeline)
    data = folder / "scene"
    config.datamanager.data = data if data.exists() else write_dataset(data, views=PHOTOS, size=64)
    config.datamanager.photo_size = None
    config.model.implementation = setting.fields
    config.particles, config.kept_views = setting.views, max(config.kept_views, setting.views)
    config.prompt, config.picture_views, config.picture_size = PROMPT, 1, 32
    if options.small:
        config.render_size = 32
    torch.manual_seed(0)
    pipeline = config.setup(device=options.device, test_mode="val")
    with patch("csd_nerf.priors.load_prior", lambda name, **_: prior):
        pipeline.begin_edit(pipeline.state_dict(), seed=0, max_steps=10**6, origin="random weights")
    pipeline.train()
    return pipeline


def measure(pipeline: Any, meter: Meter, options: Options, deadline: float) -> None:
    """Measure photos, then rounds with some of their fits: memory in the first, time in the others."""
    parameters = [p for group in pipeline.get_param_groups().values() for p in group]
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    kind = torch.device(options.device).type

    def fit() -> None:
        with torch.autocast(kind, enabled=kind == "cuda"):
            losses, _ = pipeline._edit.fit.losses(pipeline.model, pipeline._edit.targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    for view in range(len(pipeline._edit.cameras)):
        meter.of("photo", pipeline._source_latents, [view], memory=view == 0)
    meter.seconds["photo"] = meter.seconds["photo"][1:]
    for number in range(1 + options.rounds):
        if number > 0 and time.monotonic() > deadline:
            break
        first = number == 0
        with meter.parts_of(pipeline, memory=first):
            pipeline._begin_round(pipeline._edit, number)
        for _ in range(2 if first else FITS):
            meter.of("fit", fit, memory=first)
        if first:
            meter.seconds = defaultdict(list, photo=meter.seconds["photo"])


class Meter:
    """Times parts, and sees how much memory is in use on the device as they end.

    Args:
        device: of the work.

    Attributes:
        part: under way, or that failed.
        seconds: of each part, one for each round or fit.
        memory: in MiB, the most at the end of each part.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.part: str | None = None
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.memory: dict[str, float] = defaultdict(float)

    def of(self, part: str, work: Any, *arguments: Any, memory: bool = False) -> Any:
        """Do a piece of work that is a part by itself."""
        result, seconds = self._timed(part, work, arguments, {}, memory)
        self.seconds[part].append(seconds)
        return result

    @contextmanager
    def parts_of(self, pipeline: Any, *, memory: bool) -> Iterator[None]:
        """Within it, every part of a round is measured where it is called; all calls of a part add up."""
        total: dict[str, float] = defaultdict(float)

        def watched(part: str, owner: Any, name: str) -> Any:
            function = getattr(owner, name)

            def wrapped(*arguments: Any, **options: Any) -> Any:
                result, seconds = self._timed(part, function, arguments, options, memory)
                total[part] += seconds
                return result

            return patch.object(owner, name, wrapped)

        with ExitStack() as watches:
            for part, owner, name in functions_of(pipeline):
                if part in PARTS and part != "fit":
                    watches.enter_context(watched(part, owner, name))
            yield
        for part, seconds in total.items():
            self.seconds[part].append(seconds)

    def empty_cache(self) -> None:
        """Give back what torch holds without need."""
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()

    def _timed(
        self, part: str, work: Any, arguments: Any, options: dict[str, Any], memory: bool
    ) -> tuple[Any, float]:
        self.part = part
        if memory:
            self.empty_cache()
        began = _now(self._device)
        result = work(*arguments, **options)
        seconds = _now(self._device) - began
        if memory:
            self.memory[part] = max(self.memory[part], used_mib(self._device))
        return result, seconds


def used_mib(device: str) -> float:
    """Memory in use: of the whole device, whoever uses it; on a CPU the most that this process has had."""
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def method(options: Options) -> Any:
    """The edit whose defaults are measured."""
    from csd_nerf.nerf.methods import METHODS

    return METHODS["csd-edit-tiny" if options.small else "csd-edit"]


def edit_seconds(options: Options, views: int, milliseconds: dict[str, float]) -> float:
    """Of a whole edit of so many views a round, extrapolated."""
    config = method(options)
    steps, pipeline = config.max_num_iterations, config.pipeline
    rounds = pipeline.round_of(steps - 1) + 1
    sheets = steps // pipeline.steps_per_picture
    pictures = pipeline.picture_views * sheets + pipeline.turntable_frames
    each = {
        "round": rounds,
        "fit": steps,
        "photo": rounds * views,
        "draw": pictures / views,
    }
    return sum(times * milliseconds[part] for part, times in each.items()) / 1000


def machine(device: str) -> dict[str, Any]:
    """What all this was measured on."""
    about = {"torch": torch.__version__, "fields": fields_of(device), "device": platform.processor() or "cpu"}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "device": properties.name,
            "memory_mib": properties.total_memory / 2**20,
            "cuda": torch.version.cuda,
        }
    return about


def show(report: dict[str, Any], console: Console) -> None:
    """Print both tables."""
    columns = ("views", "fields", "VAE", *PARTS)
    times = Table(*columns, "edit*", title=f"Milliseconds, {report['machine']['device']}")
    memory = Table(*columns, title="Memory in use as a part ends, MiB")
    for row in report["rows"]:
        about = str(row["views"]), row["fields"], row["vae"]
        if row["out_of_memory"]:
            edit = f"out of memory: {row['out_of_memory']}"
        elif row["left_out"]:
            edit = f"left out: {row['left_out']}"
        else:
            edit = f"{row['edit_seconds'] / 60:.1f} min"
        times.add_row(*about, *(_figure(row["milliseconds"].get(part)) for part in PARTS), edit)
        memory.add_row(*about, *(_figure(row["memory_mib"].get(part)) for part in PARTS))
    console.print(times)
    console.print("* a whole edit by default, extrapolated from the parts, not measured")
    console.print(memory)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _check(options: Options) -> None:
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "there is no CUDA GPU to measure",
            expected="a CUDA GPU that torch can use",
            got="torch.cuda.is_available() is false",
            hint="see that this works by --device cpu --small",
        )


def _now(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    with exit_on_input_error():
        main(tyro.cli(Options, description=__doc__))
