"""Do the views of a scene agree on one answer to an ambiguous instruction?

Several photos of one scene are edited in latent space by CSD-Edit, all from the same start, with "recolor it
in a vivid tint": four hues are equally right answers. The same noise, timesteps and learning rate are used
twice, with independent scores and with SVGD; only the transport differs. Reported is how far the final hues
of the views lie apart:

    circular standard deviation = sqrt(-2 ln R) in degrees,  R = |mean over views of exp(i hue)|

Run `python benchmarks/ambiguous_hue.py --help` for the settings. Leaves `ambiguous_hue.json` (all hues) and
`ambiguous_hue.png` (a row for each seed, independent left, SVGD right, the photos on top) in `--output`.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from csd_nerf.distillation import DescentConfig, Objective, ObjectiveConfig, edit_latents
from csd_nerf.errors import InputError, exit_on_input_error
from csd_nerf.priors import Prior, load_prior
from csd_nerf.scenes.operators import TINT_INSTRUCTION, circular_deviation, hue_and_chroma

REPOSITORY = Path(__file__).resolve().parent.parent
TRANSPORTS: tuple[Literal["independent", "svgd"], ...] = ("independent", "svgd")
ONE_HUE_DEGREES = 15.0
"""Views count as agreeing when their deviation is below this; the four hues lie 90 degrees apart."""


@dataclass
class Settings:
    """Hue across views after an ambiguous edit, with and without SVGD."""

    scene: Path = Path(os.environ.get("CSD_NERF_SHARED", REPOSITORY.parent / "shared")) / "data/scenes/bear"
    """Captured scene with a folder `images`."""
    prior: str = "tiny-instruct"
    """Diffusion model: bundled name, folder or hub id."""
    device: str = "cpu"
    """Where it runs."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the U-Net."""
    views: int = 4
    """Photos, spread evenly over the capture."""
    size: int = 96
    """Side of the photos in pixels."""
    seeds: int = 8
    """Repetitions, of different noise and timesteps."""
    steps: int = 80
    """Steps of gradient descent on the latents."""
    learning_rate: float = 0.1
    """Of plain gradient descent."""
    min_timestep: float = 0.02
    """Least noise, as a fraction of the schedule."""
    max_timestep: float = 0.98
    """Most noise; below about 0.5 the photo's own colours decide the hue."""
    timesteps: Literal["uniform", "annealed"] = "uniform"
    """Order of the noise levels."""
    bandwidth: Literal["median", "paper"] | float = "median"
    """Of the SVGD kernel."""
    normalize_kernel: bool = True
    """Rows of the SVGD kernel sum to one."""
    output: Path = Path("benchmarks/results")
    """Folder for the figures and the contact sheet."""


@dataclass
class Outcome:
    """One edit of all views."""

    transport: str
    seed: int
    hues: list[float]  # degrees, one for each view
    chroma: list[float]  # 0..1, one for each view
    deviation: float  # degrees
    seconds: float


def main(settings: Settings) -> None:
    torch.set_grad_enabled(False)
    prior = load_prior(settings.prior, device=settings.device, dtype=getattr(torch, settings.precision))
    photos = load_photos(settings).to(prior.device)
    outcomes, rows = [], []
    print(f"{'seed':>4}  {'transport':12} {'deviation':>9}  hues")
    for seed in range(settings.seeds):
        row = []
        for outcome, pictures in edits(settings, prior, photos, seed):
            outcomes.append(outcome)
            row.append(pictures)
            hues = " ".join(f"{hue:4.0f}" for hue in outcome.hues)
            print(f"{seed:4}  {outcome.transport:12} {outcome.deviation:9.1f}  {hues}", flush=True)
        rows.append(torch.cat(row))
    summary = {name: summarize([o for o in outcomes if o.transport == name]) for name in TRANSPORTS}
    ratio = summary["svgd"]["mean_deviation"] / summary["independent"]["mean_deviation"]

    print(f"\n{'transport':12} {'mean deviation':>14} {'median':>7} {'one hue':>8} {'chroma':>7}")
    for name, figures in summary.items():
        print(
            f"{name:12} {figures['mean_deviation']:14.1f} {figures['median_deviation']:7.1f} "
            f"{figures['agreeing']:4.0f}/{settings.seeds:<3} {figures['mean_chroma']:7.2f}"
        )
    print(f"SVGD's mean deviation is {ratio:.2f} of the independent one's")

    settings.output.mkdir(parents=True, exist_ok=True)
    report = {
        "settings": asdict(settings) | {"scene": settings.scene.name, "output": settings.output.name},
        "summary": summary,
        "ratio": ratio,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    (settings.output / "ambiguous_hue.json").write_text(json.dumps(report, indent=1) + "\n")
    contact_sheet([torch.cat([photos, photos]), *rows]).save(settings.output / "ambiguous_hue.png")


def load_photos(settings: Settings) -> Tensor:
    """The photos (views, 3, size, size), RGB in 0..1."""
    files = sorted((settings.scene / "images").glob("*.jpg"))
    if len(files) < settings.views:
        raise InputError(
            "the scene has too few photos",
            expected=f"at least {settings.views} .jpg files",
            got=f"{len(files)} in {settings.scene / 'images'}",
            hint="set CSD_NERF_SHARED or --scene to the captured scene",
        )
    photos = []
    for i in range(settings.views):
        photo = Image.open(files[i * len(files) // settings.views]).convert("RGB")
        photo = photo.resize((settings.size, settings.size), Image.Resampling.LANCZOS)
        photos.append(torch.from_numpy(np.asarray(photo, dtype=np.float32) / 255).permute(2, 0, 1))
    return torch.stack(photos)


def edits(settings: Settings, prior: Prior, photos: Tensor, seed: int) -> Iterator[tuple[Outcome, Tensor]]:
    """Edit the photos with each transport, from the same start and with the same random numbers."""
    source, condition = prior.encode(photos), prior.condition(photos)
    for transport in TRANSPORTS:
        config = ObjectiveConfig(
            transport=transport,
            bandwidth=settings.bandwidth,
            normalize_kernel=settings.normalize_kernel,
            min_timestep=settings.min_timestep,
            max_timestep=settings.max_timestep,
            timesteps=settings.timesteps,
        )
        objective = Objective(config, prior)
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        latents = edit_latents(
            objective,
            source,
            source,
            condition,
            prompt=TINT_INSTRUCTION,
            descent=DescentConfig(steps=settings.steps, learning_rate=settings.learning_rate, decay=1.0),
            generator=generator,
        )
        seconds = time.perf_counter() - start
        pictures = prior.decode(latents)
        hues, chroma = hue_and_chroma(pictures)
        outcome = Outcome(transport, seed, hues.tolist(), chroma.tolist(), circular_deviation(hues), seconds)
        yield outcome, pictures


def summarize(outcomes: list[Outcome]) -> dict[str, float]:
    deviations = [outcome.deviation for outcome in outcomes]
    return {
        "mean_deviation": float(np.mean(deviations)),
        "median_deviation": float(np.median(deviations)),
        "agreeing": float(sum(deviation < ONE_HUE_DEGREES for deviation in deviations)),
        "mean_chroma": float(np.mean([outcome.chroma for outcome in outcomes])),
        "mean_seconds": float(np.mean([outcome.seconds for outcome in outcomes])),
    }


def contact_sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures (n, 3, H, W) in one picture."""
    lines = [torch.cat(list(row.cpu()), dim=2) for row in rows]
    sheet = torch.cat(lines, dim=1).permute(1, 2, 0)
    return Image.fromarray((sheet * 255).round().byte().numpy())


if __name__ == "__main__":
    with exit_on_input_error():
        main(tyro.cli(Settings, description=__doc__))
