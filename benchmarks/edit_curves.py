"""Edit a scene by several settings, and measure how far each has got after how many seconds and evaluations.

    python benchmarks/edit_curves.py --scene RUN --out results/curves
    python benchmarks/edit_curves.py --scene RUN --out results/tint --edits tint --seeds 0 1 2 --variants \
        "svgd-imq" "svgd-rbf: objective.kernel=rbf" "independent: objective.transport=independent"

A variant is a name and, after a colon, settings of the pipeline: `NAME: option=value option=value`. The
settings `steps`, `rate` (of Adam, constant), `first_rate`, `final_rate` and `hash_grid` are the trainer's.
All edits run in this process, one after another, on one thread unless `--threads` says otherwise, so that the
variants of a run compare. Seconds are CPU time of the steps alone, without start-up and measuring. The change
error is the reprojection error of what the edit changed, between all of `--compared` training views that show
enough of the same, weighted by how much.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nerfstudio.engine.trainer  # noqa: F401 - its data managers cannot be imported before it
import torch
import tyro
import yaml
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.captured_edits import CAPTIONED, colour_distance, instruction, painted_photos  # noqa: E402
from csd_nerf import threads as kernel_threads  # noqa: E402
from csd_nerf.evaluation.pixels import load_lpips, lpips, psnr  # noqa: E402
from csd_nerf.evaluation.reprojection import PosedPictures, change_of, reprojection_error  # noqa: E402
from csd_nerf.evaluation.structure import edge_correlation  # noqa: E402
from csd_nerf.nerf.depth_renders import render_with_depth  # noqa: E402
from csd_nerf.nerf.methods import METHODS  # noqa: E402
from csd_nerf.nerf.sheets import save_png, sheet  # noqa: E402
from csd_nerf.scenes.operators import (  # noqa: E402
    CAPTIONS,
    OPERATORS,
    answers_to,
    circular_deviation,
    hue_and_chroma,
)
from csd_nerf.settings_files import set_options  # noqa: E402

COMPARED_SIZE = 64
"""Side, in pixels, of the views that the change error compares."""
LEAST_COVERAGE = 0.05
"""Share of common points from which two views are compared."""
OF_OPTIMIZERS = {
    "first_rate": ("optimizer", "lr"),
    "final_rate": ("scheduler", "lr_final"),
    "hash_grid": ("optimizer", "hash_grid"),
}
"""Where settings of a variant are that every optimiser has."""


@dataclass
class Options:
    """What to run."""

    scene: Path
    """Run folder of a trained scene."""
    out: Path
    """Folder for pictures and results.json; edits that are in it already are not run again."""
    method: str = "csd-edit-tiny"
    """Whose settings the variants change; methods other than csd-edit-tiny have the recipe tiny."""
    variants: tuple[str, ...] = ("default", "gradient: route=gradient steps=75 rate=0.01")
    """Names and settings."""
    edits: tuple[str, ...] = ("night", "winter", "autumn", "sketch", "sepia", "tint")
    """Which instructions."""
    seeds: tuple[int, ...] = (42,)
    """Of the edits."""
    size: int = 128
    """Side of the evaluation renders, in pixels."""
    compared: int = 0
    """Training views, spread evenly, between which the change error is measured; 0 does without."""
    points: int = 1
    """How often an edit is measured on its way, evenly; the end is one of them."""
    threads: int = 1
    """Of torch and of the kernels."""


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    kernel_threads.CORES = options.threads
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    networks = load_lpips("cpu", download=False)
    for edit in options.edits:
        for seed in options.seeds:
            for variant in options.variants:
                name, _, settings = (part.strip() for part in variant.partition(":"))
                key = f"{options.method}/{edit}/{name}/{seed}"
                if key in results:
                    continue
                results[key] = run(options, edit, seed, name, settings, networks)
                print(key, json.dumps(results[key][-1]), flush=True)
                file.write_text(json.dumps(results, indent=1))


def run(
    options: Options, edit: str, seed: int, name: str, settings: str, network: Any
) -> list[dict[str, float]]:
    """The measurements of one edit, the last one at its end."""
    config = configured(options, edit, seed, settings)
    steps = config.max_num_iterations
    pipeline, optimizers = begun(config)
    cameras, indices = pipeline.datamanager.eval_cameras(options.size, options.size, 1000)
    photos = pipeline.datamanager.eval_photos(indices, options.size, options.size).cpu()
    before = pipeline.draw(cameras)
    places = pipeline.datamanager.train_cameras(COMPARED_SIZE, COMPARED_SIZE)
    places = places[torch.linspace(0, len(places) - 1, options.compared).round().long()]
    geometry = render_with_depth(pipeline.model, places) if options.compared else None
    measured, seconds = [], 0.0
    at = {round(steps * (point + 1) / options.points) for point in range(options.points)}
    for step in range(steps):
        started = time.process_time()
        train(pipeline, optimizers, step)
        seconds += time.process_time() - started
        if step + 1 in at:
            after = pipeline.draw(cameras)
            figures = measure(edit, photos, before, after, network)
            if geometry is not None:
                change = change_of(geometry, render_with_depth(pipeline.model, places))
                figures["change_error"] = round(change_error(change), 4)
                figures["change"] = round(float(change.images.abs().mean()), 4)
            measured.append(
                {"seconds": round(seconds, 2), "unet_evaluations": pipeline.unet_evaluations, **figures}
            )
    rows = [photos[:5], before[:5], after[:5]]
    if edit in OPERATORS:
        rows.append(OPERATORS[edit].apply(photos[:5]))
    save_png(sheet(rows), options.out / f"{edit}-{options.method}-{name}-{seed}.png")
    return measured


def begun(config: Any) -> tuple[Any, Optimizers]:
    """The pipeline of an edit before its first step, and its optimisers."""
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    source = torch.load(config.pipeline.source_checkpoint, map_location="cpu", weights_only=True)
    pipeline.begin_edit(
        source["pipeline"],
        seed=config.machine.seed,
        max_steps=config.max_num_iterations,
        origin=str(config.load_dir),
    )
    return pipeline, Optimizers(copy.deepcopy(config.optimizers), pipeline.get_param_groups())


def train(pipeline: Any, optimizers: Optimizers, step: int) -> None:
    """A step of the edit, without nerfstudio's trainer around it."""
    pipeline.train()
    optimizers.zero_grad_all()
    _, losses, _ = pipeline.get_train_loss_dict(step)
    sum(losses.values()).backward()
    optimizers.optimizer_step_all()
    optimizers.scheduler_step_all(step)


def change_error(change: PosedPictures) -> float:
    """How far the changes of common points differ between views, 0..1."""
    count = len(change.images)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    found = reprojection_error(change, pairs)
    enough = found.coverage >= LEAST_COVERAGE
    return float((found.errors * found.coverage)[enough].sum() / found.coverage[enough].sum())


def configured(options: Options, edit: str, seed: int, settings: str) -> Any:
    """The method's configuration with a variant's settings, checked as `ns-train` does."""
    config = copy.deepcopy(METHODS[options.method])
    config.recipe = None if options.method == "csd-edit-tiny" else "tiny"
    config.load_dir, config.machine.seed = options.scene, seed
    if options.method in CAPTIONED:
        config.prompt, config.pipeline.source_prompt = CAPTIONS[edit], CAPTIONS["identity"]
    else:
        config.prompt = instruction(edit)
    config.check()
    for setting in settings.split():
        option, value = setting.split("=")
        put(config, option, yaml.safe_load(value))
    for optimizer in config.optimizers.values():
        if optimizer["scheduler"] is not None:
            optimizer["scheduler"].max_steps = config.max_num_iterations
    config.pipeline.check()
    return config


def put(config: Any, option: str, value: Any) -> None:
    """Set one option of a variant."""
    if option == "steps":
        config.max_num_iterations = value
    elif option == "rate":
        for optimizer in config.optimizers.values():
            optimizer["optimizer"].lr, optimizer["scheduler"] = value, None
    elif option in OF_OPTIMIZERS:
        part, name = OF_OPTIMIZERS[option]
        for optimizer in config.optimizers.values():
            setattr(optimizer[part], name, value)
    else:
        for part in reversed(option.split(".")):
            value = {part: value}
        set_options(config.pipeline, value, Path("a variant"))


def measure(edit: str, photos: Tensor, before: Tensor, after: Tensor, network: Any) -> dict[str, float]:
    """How near the renders are to the right answer, and what of the scene is kept."""
    figures = {"edge_correlation": float(edge_correlation(after, before).mean())}
    if edit == "painting":
        figures["colour_distance"] = colour_distance(after, painted_photos())
        return rounded(figures)
    answers = list(answers_to(instruction(edit)).values())
    best = max(answers, key=lambda answer: float(psnr(after, answer(photos)).mean()))
    right = best(photos)
    figures["gain_db"] = float(psnr(after, right).mean() - psnr(before, right).mean())
    figures["lpips"] = float(lpips(network, after, right).mean())
    figures["answer_edges"] = float(edge_correlation(after, right).mean())
    if len(answers) > 1:
        hues, chromas = hue_and_chroma(after)
        figures["hue_deviation_degrees"] = circular_deviation(hues)
        figures["chroma"] = float(chromas.mean())
    return rounded(figures)


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
