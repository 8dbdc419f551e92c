"""Edit a captured scene in a box only, and measure what became of the inside and of the rest.

    python benchmarks/region_edit.py --out results/region        # the bear of the scene `bear`, two CPU cores

The evaluation cameras are split into pixels inside and outside the box by the source scene. Outside, the
PSNR of the edited renders to the source renders says how well the rest is kept. Inside, the gain is the rise
in PSNR towards the instruction's exact operator (`csd_nerf.scenes.operators`) of the evaluation photos.
Everything runs through `ns-train`, as a user would; what is there already is not run again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.captured_edits import Options as CaptureOptions  # noqa: E402
from benchmarks.captured_edits import ns_train  # noqa: E402
from csd_nerf.nerf.methods import METHODS  # noqa: E402
from csd_nerf.nerf.region_box import Vector  # noqa: E402
from csd_nerf.nerf.rendering import render_still  # noqa: E402
from csd_nerf.nerf.runs import find_run, read_checkpoint  # noqa: E402
from csd_nerf.nerf.sheets import save_png, sheet  # noqa: E402
from csd_nerf.pixel_rays import PixelRays  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS  # noqa: E402
from training.photos import shared_folder  # noqa: E402

TINY_EDIT: Any = METHODS["csd-edit-tiny"]


@dataclass
class Options:
    """What to run. The box is that of the bear."""

    out: Path
    """Folder for runs, pictures and region.json."""
    data: Path = shared_folder() / "data" / "scenes" / "bear"
    """A captured scene."""
    edits: tuple[str, ...] = ("night", "winter")
    """Which instructions; each has an exact operator."""
    box_center: Vector = (-0.14, 0.155, -0.29)
    """Middle of the box, in scene coordinates."""
    box_size: Vector = (0.46, 0.86, 0.36)
    """Lengths of its edges."""
    freeze_geometry: bool = False
    """Edit colours only."""
    steps: int = TINY_EDIT.max_num_iterations
    """Edit steps."""
    size: int = 128
    """Side of the evaluation renders, in pixels."""
    seed: int = 42
    """Of scene and edits."""


def main(options: Options) -> None:
    capture = CaptureOptions(out=options.out, data=options.data, seed=options.seed)
    scene = options.out / "scene" / "csd-nerfacto-tiny" / "run"
    ns_train(scene, capture, "csd-nerfacto-tiny", "--data", str(options.data))
    results = {}
    for name in options.edits:
        run = options.out / f"{name}-inside" / "csd-edit-tiny" / "run"
        seconds = ns_train(
            run, capture, "csd-edit-tiny", "--load-dir", str(scene),
            "--prompt", OPERATORS[name].instruction, "--max-num-iterations", str(options.steps),
            "--pipeline.region.source", "box",
            "--pipeline.region.box-center", *map(str, options.box_center),
            "--pipeline.region.box-size", *map(str, options.box_size),
            "--pipeline.freeze-geometry", str(options.freeze_geometry),
        )  # fmt: skip
        photos, before, after, inside = evaluation_views(run, options.size)
        answer = OPERATORS[name].apply(photos)
        unedited, edited = (masked_psnr(images, answer, inside) for images in (before, after))
        results[name] = {
            "seconds": seconds,
            "outside_db": masked_psnr(after, before, 1 - inside),
            "inside_unedited_db": unedited,
            "inside_edited_db": edited,
            "inside_gain_db": edited - unedited,
        }
        rows = [before[:4], after[:4], before[:4] + inside[:4] * (answer[:4] - before[:4])]
        save_png(sheet(rows), options.out / f"{name}-inside.png")
        print(name, results[name], flush=True)
    (options.out / "region.json").write_text(json.dumps(results, indent=1))


@torch.no_grad()
def evaluation_views(run: Path, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluation photos, source and edited renders (V, 3, H, W); which pixels are in the box (V, 1, H, W)."""
    from nerfstudio.utils.eval_utils import eval_setup

    config, pipeline, _, _ = eval_setup(run / "config.yml")
    cameras, indices = pipeline.datamanager.eval_cameras(size, size, 1000)
    photos = pipeline.datamanager.eval_photos(indices, size, size)
    after = pipeline.draw(cameras)
    source = find_run(config.pipeline.source_checkpoint).checkpoint
    pipeline.model.load_scene(read_checkpoint(source)["pipeline"], str(source))
    pipeline.model.train()
    contains = config.pipeline.region.box().contains
    rays = PixelRays(cameras)
    inside = torch.stack(
        [
            render_still(pipeline.model, rays.of_view(index), inside=contains).inside
            for index in range(len(cameras))
        ]
    )
    return photos.cpu(), pipeline.draw(cameras), after, (inside >= 0.5).float().cpu()


def masked_psnr(images: Tensor, answer: Tensor, mask: Tensor) -> float:
    """Mean over views (V, 3, H, W) of the PSNR, in dB, where the mask (V, 1, H, W) is 1."""
    squared = ((images - answer).square().mean(1, keepdim=True) * mask).sum((1, 2, 3))
    return float((-10 * torch.log10(squared / mask.sum((1, 2, 3)))).mean())


if __name__ == "__main__":
    options = tyro.cli(Options)
    options.out.mkdir(parents=True, exist_ok=True)
    main(options)
