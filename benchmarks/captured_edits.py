"""Train a captured scene, edit it by every instruction whose answer is known, and measure the gain.

    python benchmarks/captured_edits.py --out results/bear            # the scene `bear`, two CPU cores
    python benchmarks/captured_edits.py --out results/bear --method in2n-baseline --edits night

    python benchmarks/captured_edits.py --out results/bear --method cds-edit --text-guidance 7.5

For each instruction the exact operator (`csd_nerf.scenes.operators`) of the evaluation photos is the
answer; the gain is the rise in PSNR of the evaluation renders towards it. The painting has no exact
operator: for it the table has the distance of the colour statistics to those of painted pictures.
Everything runs through `ns-train`, as a user would, with the recipe `tiny`; what is there already is not run
again. `unet_evaluations` in the results are those of the whole edit, by which methods compare.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.evaluation.pixels import psnr  # noqa: E402
from csd_nerf.evaluation.structure import edge_correlation  # noqa: E402
from csd_nerf.nerf.methods import METHODS  # noqa: E402
from csd_nerf.nerf.runs import find_run, read_checkpoint  # noqa: E402
from csd_nerf.nerf.sheets import save_png, sheet  # noqa: E402
from csd_nerf.scenes.operators import (  # noqa: E402
    CAPTIONS,
    OPERATORS,
    PAINTING_INSTRUCTION,
    TINT_INSTRUCTION,
    circular_deviation,
    hue_and_chroma,
)
from training.photos import shared_folder  # noqa: E402

TINY_SCENE: Any = METHODS["csd-nerfacto-tiny"]
SHARED = shared_folder()


Method = Literal[
    "csd-edit-tiny", "csd-edit", "csd-edit-dataset", "in2n-baseline", "refit-baseline",
    "dds-edit", "cds-edit", "pds-edit", "sds-edit",
]  # fmt: skip
CAPTIONED = ("dds-edit", "cds-edit", "pds-edit", "sds-edit")


@dataclass
class Options:
    """What to run."""

    out: Path
    """Folder for runs, pictures and results.json."""
    data: Path = SHARED / "data" / "scenes" / "bear"
    """A captured scene."""
    method: Method = "csd-edit-tiny"
    """How the scene is edited. Those of a text-to-image model are told captions of source and target."""
    edits: tuple[str, ...] = ("night", "winter", "autumn", "sketch", "sepia", "painting", "tint")
    """Which instructions."""
    prior: str | None = None
    """Which prior; None is the method's own with the recipe."""
    scene_steps: int = TINY_SCENE.max_num_iterations
    """Training steps of the scene."""
    steps: int | None = None
    """Edit steps; None is as many as the method has with the recipe."""
    text_guidance: float | None = None
    """Text guidance of every edit."""
    size: int = 128
    """Side of the evaluation renders, in pixels."""
    seed: int = 42
    """Of scene and edits."""
    route: Literal["loop", "gradient"] | None = None
    """How the edit reaches the scene; see `--pipeline.route`. The published gradient took 75 steps."""
    transport: Literal["svgd", "independent"] | None = None
    """Whether the views share their scores; not for the two baselines."""
    max_timestep: float | None = None
    """Most noise, as a fraction of the schedule; the ambiguous tint needs up to 0.98."""


def main(options: Options) -> None:
    scene = options.out / "scene" / "csd-nerfacto-tiny" / "run"
    seconds = ns_train(
        scene, options, "csd-nerfacto-tiny", "--data", str(options.data),
        "--max-num-iterations", str(options.scene_steps),
    )  # fmt: skip
    results: dict[str, dict[str, float | str]] = {"scene": {"seconds": seconds}}
    for name in options.edits:
        run = options.out / name / options.method / "run"
        seconds = ns_train(
            run, options, options.method, "--load-dir", str(scene), *prompts(options, name),
            *edit_arguments(options),
        )  # fmt: skip
        photos, before, after = evaluation_views(run, options.size)
        results["scene"]["psnr"] = float(psnr(before, photos).mean())
        results[name] = {
            "prompt": prompts(options, name)[1],
            "seconds": seconds,
            "unet_evaluations": unet_evaluations(run),
            **measure(name, photos, before, after),
            "edge_correlation": float(edge_correlation(after, before).mean()),
        }
        rows = [photos[:4], before[:4], after[:4]]
        if name in OPERATORS:
            rows.append(OPERATORS[name].apply(photos[:4]))
        save_png(sheet(rows), options.out / f"{name}-{options.method}.png")
        print(name, results[name], flush=True)
    (options.out / f"results-{options.method}.json").write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


def edit_arguments(options: Options) -> list[str]:
    """Options of the edit that were given, as arguments of `ns-train`."""
    guidance = METHODS[options.method].pipeline.guidance_option
    given = {
        "--max-num-iterations": options.steps,
        "--pipeline.prior": options.prior,
        f"{guidance}.text-guidance": options.text_guidance,
        f"{guidance}.max-timestep": options.max_timestep,
        "--pipeline.route": options.route,
        "--pipeline.objective.transport": options.transport,
    }
    recipe = [] if options.method == "csd-edit-tiny" else ["--recipe", "tiny"]
    return recipe + [
        argument for flag, value in given.items() if value is not None for argument in (flag, str(value))
    ]


def unet_evaluations(run: Path) -> int:
    """Rows that went through the U-Net in an edit, from its last checkpoint."""
    return read_checkpoint(find_run(run).checkpoint)["pipeline"]["_extra_state"]["unet_evaluations"]


def prompts(options: Options, name: str) -> list[str]:
    """The arguments of `ns-train` that say what to change."""
    if options.method in CAPTIONED:
        return ["--prompt", CAPTIONS[name], "--pipeline.source-prompt", CAPTIONS["identity"]]
    return ["--prompt", instruction(name)]


def instruction(name: str) -> str:
    named = {"painting": PAINTING_INSTRUCTION, "tint": TINT_INSTRUCTION}
    return named.get(name) or OPERATORS[name].instruction


def ns_train(run: Path, options: Options, method: str, *arguments: str) -> float:
    """Train unless it is done; returns the wall time in seconds, start-up included (kept beside the run)."""
    timing = run / "seconds.txt"
    if not timing.exists():
        output, experiment = run.parents[2], run.parents[1].name
        command = [
            str(Path(sys.executable).parent / "ns-train"), method, *arguments,
            "--output-dir", str(output), "--experiment-name", experiment, "--timestamp", run.name,
            "--vis", "tensorboard", "--viewer.quit-on-train-completion", "True",
            "--machine.seed", str(options.seed),
        ]  # fmt: skip
        start = time.time()
        with open(options.out / f"{experiment}-{method}.log", "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        timing.write_text(f"{time.time() - start:.1f}")
    return float(timing.read_text())


@torch.no_grad()
def evaluation_views(run: Path, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluation photos, source renders and edited renders, each (V, 3, size, size)."""
    from nerfstudio.utils.eval_utils import eval_setup

    config, pipeline, _, _ = eval_setup(run / "config.yml")
    cameras, indices = pipeline.datamanager.eval_cameras(size, size, 1000)
    photos = pipeline.datamanager.eval_photos(indices, size, size)
    after = pipeline.draw(cameras)
    source = find_run(config.pipeline.source_checkpoint).checkpoint
    pipeline.load_pipeline(read_checkpoint(source)["pipeline"], 0)
    return photos.cpu(), pipeline.draw(cameras), after


def measure(name: str, photos: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    if name in OPERATORS:
        answer = OPERATORS[name].apply(photos)
        unedited, edited = (float(psnr(images, answer).mean()) for images in (before, after))
        return {"unedited_db": unedited, "edited_db": edited, "gain_db": edited - unedited}
    if name == "painting":
        painted = painted_photos()
        return {
            "unedited_colour_distance": colour_distance(before, painted),
            "edited_colour_distance": colour_distance(after, painted),
        }
    hues, chromas = hue_and_chroma(after)
    return {"chroma": float(chromas.mean()), "hue_deviation_degrees": circular_deviation(hues)}


def colour_distance(images: Tensor, reference: Tensor) -> float:
    """Frechet distance between the RGB distributions, each taken as normal (Dowson and Landau 1982)."""
    (mean_a, cov_a), (mean_b, cov_b) = (
        (pixels.mean(1), torch.cov(pixels))
        for pixels in (batch.permute(1, 0, 2, 3).reshape(3, -1).double() for batch in (images, reference))
    )
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0)
    spread = torch.trace(cov_a) + torch.trace(cov_b) - 2 * eigenvalues.sqrt().sum()
    return float(((mean_a - mean_b).square().sum() + spread).clamp(min=0).sqrt())


def painted_photos() -> Tensor:
    from torchvision.io import read_image
    from torchvision.transforms.functional import center_crop, resize

    files = sorted((SHARED / "data" / "photos" / "la_muse").glob("*.jpg"))[::4]
    return torch.stack([center_crop(resize(read_image(str(file)), 128), 128) for file in files]) / 255


if __name__ == "__main__":
    options = tyro.cli(Options)
    options.out.mkdir(parents=True, exist_ok=True)
    main(options)
