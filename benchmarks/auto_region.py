"""Let the diffusion model say where to edit, on a scene whose objects are known, and compare with these.

    python benchmarks/auto_region.py --out results/auto          # the still life, two CPU cores

The bundled prior edits whole pictures. So a copy of its U-Net is first trained on for a while, on pictures
of the still life from other cameras, to repaint single objects as `csd_nerf.scenes.still_life.OBJECT_EDITS`
says. Each instruction then edits the scene with `--pipeline.region.source auto`. From the evaluation cameras:
the overlap (intersection over union) of the region, where it makes up half of a pixel, with the object that
is named; what `csd-nerf evaluate` says of the change outside; and how near the edit comes to the true result.
Everything runs through `ns-train`, as a user would; what is there already is not run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.captured_edits import Options as CaptureOptions  # noqa: E402
from benchmarks.captured_edits import ns_train  # noqa: E402
from csd_nerf.bundled import bundled_path  # noqa: E402
from csd_nerf.nerf.methods import METHODS  # noqa: E402
from csd_nerf.nerf.rendering import render_still  # noqa: E402
from csd_nerf.nerf.sheets import save_png, sheet  # noqa: E402
from csd_nerf.nerf.source_scene import source_scene  # noqa: E402
from csd_nerf.pixel_rays import PixelRays  # noqa: E402
from csd_nerf.priors import load_prior  # noqa: E402
from csd_nerf.scenes.dataset import write_dataset  # noqa: E402
from csd_nerf.scenes.still_life import OBJECT_EDITS, OBJECT_NAMES, orbit_cameras, render  # noqa: E402

DROPPED = 0.05
"""Probability of each: no text, no photo, neither. For classifier-free guidance on both."""
TINY_EDIT: Any = METHODS["csd-edit-tiny"]


@dataclass
class Options:
    """What to run."""

    out: Path
    """Folder for the prior, runs, pictures and auto_region.json."""
    data: Path | None = None
    """The still life as a dataset; without it one is rendered."""
    scene: Path | None = None
    """Run folder of it; without it one is trained."""
    edits: tuple[str, ...] = tuple(OBJECT_EDITS)
    """Which instructions."""
    prior_steps: int = 1500
    """Steps of 16 samples that the prior is trained on for."""
    prior_views: int = 48
    """Pictures that it is trained on, each under every instruction."""
    steps: int = TINY_EDIT.max_num_iterations
    """Edit steps."""
    size: int = 128
    """Side of the evaluation renders, in pixels."""
    seed: int = 42
    """Of everything."""


def main(options: Options) -> None:
    prior = train_prior(options)
    capture = CaptureOptions(out=options.out, seed=options.seed)
    data = options.data or options.out / "still_life"
    if not data.exists():
        write_dataset(data)
    scene = options.scene or options.out / "scene" / "csd-nerfacto-tiny" / "run"
    if options.scene is None:
        ns_train(scene, capture, "csd-nerfacto-tiny", "--data", str(data))
    results = {}
    for prompt in options.edits:
        name = prompt.replace(" ", "-")
        run = options.out / name / "csd-edit-tiny" / "run"
        seconds = ns_train(
            run, capture, "csd-edit-tiny", "--load-dir", str(scene), "--prompt", prompt,
            "--pipeline.prior", str(prior), "--pipeline.region.source", "auto",
            "--max-num-iterations", str(options.steps),
        )  # fmt: skip
        results[name] = {"seconds": seconds, **measure(run, prompt, options)}
        print(name, results[name], flush=True)
        (options.out / "auto_region.json").write_text(json.dumps(results, indent=1))


def train_prior(options: Options) -> Path:
    """A copy of `tiny-instruct` that also knows the edits of objects; its folder."""
    folder = options.out / "prior"
    if folder.exists():
        return folder
    prior: Any = load_prior("tiny-instruct", device="cpu", dtype=torch.float32)
    prompts = list(OBJECT_EDITS)
    photos, edits = [], []
    for camera in orbit_cameras(options.prior_views, size=64, seed=options.seed + 1):
        photos.append(render(camera).rgb)
        edits.append([render(camera, edit=prompt).rgb for prompt in prompts])
    pictures = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float()
    answers = torch.from_numpy(np.stack(edits)).permute(0, 1, 4, 2, 3).float()
    with torch.no_grad():
        shown = prior.condition(pictures)
        targets = torch.stack([prior.encode(answers[:, edit]) for edit in range(len(prompts))], dim=1)
        texts = prior.embed([*prompts, ""])
    unet = prior.unet.train().requires_grad_(True)
    unet.disable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, options.prior_steps, pct_start=0.05)
    torch.manual_seed(options.seed)
    began = time.monotonic()
    for step in range(options.prior_steps):
        view = torch.randint(len(pictures), (16,))
        edit = torch.randint(len(prompts), (16,))
        t = torch.randint(prior.schedule.num_timesteps, (16,))
        clean, noise = targets[view, edit], torch.randn(16, *targets.shape[2:])
        signal, spread = (
            part[t].view(-1, 1, 1, 1) for part in (prior.schedule.alphas, prior.schedule.sigmas)
        )
        dropped = torch.rand(16)
        words = torch.where((dropped < 2 * DROPPED)[:, None, None], texts[-1:], texts[edit])
        without_photo = (dropped >= DROPPED) & (dropped < 3 * DROPPED)
        picture = torch.where(without_photo[:, None, None, None], 0.0, shown[view])
        rows = torch.cat([signal * clean + spread * noise, picture], dim=1)
        errors = (unet(rows, t, encoder_hidden_states=words).sample - noise).square().mean((1, 2, 3))
        loss = (errors * (signal.flatten() ** -1.2).clamp(max=12)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"prior {step} {float(loss):.4f} {time.monotonic() - began:.0f} s", flush=True)
    shutil.copytree(bundled_path("tiny-instruct"), folder)
    weights = {name: value.contiguous() for name, value in unet.state_dict().items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@torch.no_grad()
def measure(run: Path, prompt: str, options: Options) -> dict[str, float]:
    """Overlap with the object, change outside, and how near the edit comes to the true result."""
    from nerfstudio.utils.eval_utils import eval_setup

    figures = evaluated(run, options.size)
    config, pipeline, _, _ = eval_setup(run / "config.yml")
    cameras, indices = pipeline.datamanager.eval_cameras(options.size, options.size, 1000)
    after = pipeline.draw(cameras)
    rays = PixelRays(cameras)
    with source_scene(pipeline):
        before = pipeline.draw(cameras)
        pipeline.model.train()
        shares = torch.stack(
            [
                render_still(pipeline.model, rays.of_view(view), inside=pipeline.inside).inside
                for view in range(len(cameras))
            ]
        )
    truth = true_masks(config.data, pipeline, indices, OBJECT_EDITS[prompt].target)
    found = shares >= 0.5
    shown = [view for view in range(len(truth)) if truth[view].sum() >= 30]
    overlap = [float((found[view] & truth[view]).sum() / (found[view] | truth[view]).sum()) for view in shown]
    answers = true_edits(pipeline, indices, prompt, options.size)
    on_object = truth.float()

    def to_answer(pictures: Tensor) -> float:
        error = ((pictures - answers).square() * on_object).sum() / (3 * on_object.sum())
        return float(-10 * torch.log10(error))

    rows = [before[:4], shares[:4].expand(-1, 3, -1, -1), after[:4], answers[:4]]
    save_png(sheet(rows), options.out / f"{prompt.replace(' ', '-')}.png")
    return {
        "overlap": sum(overlap) / len(overlap),
        "worst_overlap": min(overlap),
        "object_before_db": to_answer(before),
        "object_after_db": to_answer(after),
        **{name: figures[name]["after"] for name in figures if name.startswith("change")},
    }


def evaluated(run: Path, size: int) -> Any:
    """The figures of `csd-nerf evaluate`."""
    subprocess.run(
        [sys.executable, "-m", "csd_nerf.cli", "evaluate", str(run), "--size", str(size), "--views", "1000"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((run / "evaluation.json").read_text())["figures"]


def true_masks(data: Path, pipeline: Any, indices: list[int], name: str) -> Tensor:
    """Which pixels of evaluation views show an object, (V, 1, H, W), at the size of the photos."""
    files = [pipeline.datamanager.eval_dataset.image_filenames[index] for index in indices]
    objects = [np.asarray(Image.open(data / "objects" / file.name)) for file in files]
    return torch.from_numpy(np.stack(objects) == OBJECT_NAMES.index(name))[:, None]


def true_edits(pipeline: Any, indices: list[int], prompt: str, size: int) -> Tensor:
    """The evaluation views of the still life under the edit, (V, 3, H, W)."""
    numbers = [int(pipeline.datamanager.eval_dataset.image_filenames[index].stem) for index in indices]
    count = len(pipeline.datamanager.eval_dataset) + len(pipeline.datamanager.train_dataset)
    cameras = orbit_cameras(count, size=size)
    pictures = np.stack([render(cameras[number], edit=prompt).rgb for number in numbers])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


if __name__ == "__main__":
    options = tyro.cli(Options)
    options.out.mkdir(parents=True, exist_ok=True)
    main(options)
