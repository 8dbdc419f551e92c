"""Fit a scene to views of which a small part was painted, and measure how much of the paint arrives.

    python benchmarks/local_change.py --scene RUN --out results/local --fits 2000 --rays 2048 --variants \
        default "one-rate: hash_grid=1 first_rate=0.004 final_rate=0.001"

The bundled priors change whole pictures. A larger one also turns a bear into another bear, and a field must
be able to follow that. Here no prior is asked: what lies within a ball around the middle of what the training
views show is painted in stripes, by the scene's own depth, in sixteen training views, to which the scene is
fitted, and in the evaluation views, with which its renders are compared. Variants are those of
`edit_curves.py`. PSNR is in dB, inside of the ball and outside of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import nerfstudio.engine.trainer  # noqa: F401 - its data managers cannot be imported before it
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.edit_curves import Options as Curves  # noqa: E402
from benchmarks.edit_curves import begun, configured, train  # noqa: E402
from csd_nerf import threads as kernel_threads  # noqa: E402
from csd_nerf.evaluation.pixels import load_lpips, lpips  # noqa: E402
from csd_nerf.nerf.region import spread, surface  # noqa: E402
from csd_nerf.nerf.sheets import save_png, sheet  # noqa: E402
from csd_nerf.pixel_rays import PixelRays  # noqa: E402

VIEWS = 16
"""Painted training views, as many as an edit keeps."""
SHARE = 0.35
"""Of the points in the middle of the views that the ball holds."""


@dataclass
class Options:
    """What to run."""

    scene: Path
    """Run folder of a trained scene."""
    out: Path
    """Folder for pictures and results.json."""
    variants: tuple[str, ...] = ("default",)
    """Names and settings, see edit_curves.py."""
    fits: int = 192
    """Steps."""
    rays: int = 384
    """Of each."""
    size: int = 128
    """Side of the evaluation renders, in pixels."""
    threads: int = 1
    """Of torch and of the kernels."""


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    kernel_threads.CORES = options.threads
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for variant in options.variants:
        name, _, settings = (part.strip() for part in variant.partition(":"))
        results[name] = run(options, name, settings)
        print(name, json.dumps(results[name]), flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1))


@torch.no_grad()
def painted(images: Tensor, points: Tensor, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (V, 3, H, W) with red and blue stripes within the ball, and where that is (V, 1, H, W).

    Args:
        images: 0..1.
        points: that their pixels show, (V, H * W, 3).
        middle, radius: of the ball.
    """
    places = points.view(len(images), 1, *images.shape[-2:], 3)
    inside = (places - middle).norm(dim=-1) < radius
    red = (places[..., 2] / (radius / 2)).floor() % 2 == 0
    light = images.mean(1, keepdim=True)
    strong, weak = 0.4 + 0.6 * light, 0.3 * light
    stripes = torch.where(red, torch.cat([strong, weak, weak], 1), torch.cat([weak, weak, strong], 1))
    return torch.where(inside, stripes, images), inside


def run(options: Options, name: str, settings: str) -> dict[str, float]:
    """Fit, draw and measure."""
    curves = Curves(scene=options.scene, out=options.out)
    # One round, the targets of which are here already.
    config = configured(curves, "night", 0, f"steps={options.fits} fits_per_round=0 {settings}")
    config.pipeline.datamanager.train_num_rays_per_batch = options.rays
    pipeline, optimizers = begun(config)
    edit, model = pipeline._edit, pipeline.model
    cameras, _ = pipeline.datamanager.eval_cameras(options.size, options.size, 1000)
    pipeline.train()
    views = spread(len(edit.cameras))[:VIEWS]
    shown_in_training, shown_in_evaluation = (
        torch.stack([surface(model, rays, view) for view in which]).detach()
        for rays, which in ((edit.rays, views), (PixelRays(cameras), range(len(cameras))))
    )
    rows, columns = (slice(length // 3, -(length // 3)) for length in (edit.height, edit.width))
    centres = shown_in_training.view(len(views), edit.height, edit.width, 3)[:, rows, columns].reshape(-1, 3)
    middle = centres.median(0).values
    radius = (centres - middle).norm(dim=1).quantile(SHARE)
    targets, _ = painted(pipeline.draw(edit.cameras[torch.tensor(views)]), shown_in_training, middle, radius)
    before = pipeline.draw(cameras)
    wanted, inside = painted(before, shown_in_evaluation, middle, radius)

    edit.targets.put(views, targets)
    edit.round = 0
    for step in range(options.fits):
        train(pipeline, optimizers, step)

    after = pipeline.draw(cameras)
    save_png(sheet([before[:5], wanted[:5], after[:5]]), options.out / f"{name}.png")
    figures = {
        "before_inside": decibels(before, wanted, inside),
        "inside": decibels(after, wanted, inside),
        "outside": decibels(after, wanted, ~inside),
        "lpips": float(lpips(load_lpips("cpu", download=False), after, wanted).mean()),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def decibels(pictures: Tensor, wanted: Tensor, where: Tensor) -> float:
    """PSNR over some pixels (V, 1, H, W) of all pictures."""
    return float(-10 * (pictures - wanted).square().mean(1, keepdim=True)[where].mean().log10())


if __name__ == "__main__":
    main(tyro.cli(Options))
