"""The depth ControlNet (Zhang et al., 2302.05543) of `tiny-sd`, trained on the procedural still life.

There the depth is exact, and so is every style of every view: the operators make it from the render.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from csd_nerf.priors.control_pictures import depth_picture
from csd_nerf.scenes.casting import PinholeCamera, look_at
from csd_nerf.scenes.operators import OPERATORS, TINTS
from csd_nerf.scenes.still_life import render
from training.denoising import Batch, diffused, load_average, train_denoiser
from training.latents import TARGETS
from training.parallel import Worker
from training.progress import Job, save_whole
from training.text import UNKNOWN
from training.unet import DROPPED, TEXT_TO_IMAGE, load_unet, text_tables
from training.vae import RAW_DEVIATION, load_vae

NAME = "depth"
PEAK_LEARNING_RATE = 4e-4
VIEWS = 320
VIEW_SIZE = 128
"""Pixels a side."""

FACTOR = 4
"""Pixels per latent."""

SHARES = {name: 0.3 if name == "identity" else 0.7 / 6 for name in (*OPERATORS, "tint")}
"""Share of the samples by style. There is no painting: only photos were painted."""


@dataclass(frozen=True)
class View:
    """One view of the still life: its depth picture (1, H, W) uint8 and unscaled latents (4, h, w) fp16."""

    depth: Tensor
    targets: dict[str, Tensor]


def training_cameras(count: int, seed: int) -> list[PinholeCamera]:
    """Cameras from far to near, low to high, wide to narrow: views whose depths have little in common."""
    generator = np.random.default_rng(seed)
    cameras = []
    for _ in range(count):
        azimuth, elevation = generator.uniform(0, 2 * np.pi), np.radians(generator.uniform(8, 65))
        across = np.cos(elevation)
        direction = np.array([np.cos(azimuth) * across, np.sin(azimuth) * across, np.sin(elevation)])
        target = np.array([0.0, 0.0, 0.25]) + generator.uniform(-0.35, 0.35, 3)
        position = target + generator.uniform(1.1, 3.2) * direction
        position[2] = max(position[2], 0.25)
        focal = 0.5 * VIEW_SIZE / np.tan(np.radians(generator.uniform(40, 65)) / 2)
        cameras.append(PinholeCamera(look_at(position, target), float(focal), VIEW_SIZE, VIEW_SIZE))
    return cameras


def write_views(worker: Worker, work: Path, seed: int) -> None:
    """Render and encode this worker's share of the views to `work/views-RANK-of-COUNT.pt`."""
    file = _file(work, worker.rank, worker.count)
    if not file.exists():
        vae = load_vae(work, worker.device)
        edits = [OPERATORS[name].apply if name in OPERATORS else TINTS[name] for name in TARGETS]
        views = []
        for camera in training_cameras(VIEWS, seed)[worker.rank :: worker.count]:
            picture = render(camera, samples_per_side=2)
            rgb = torch.from_numpy(picture.rgb).permute(2, 0, 1)
            with torch.no_grad(), torch.autocast(worker.device.type, torch.bfloat16):
                pictures = torch.stack([edit(rgb) for edit in edits]).to(worker.device)
                latents = vae.encode(pictures * 2 - 1).latent_dist.mode().half().cpu()
            depth = depth_picture(along_axis(picture.depth, camera)[None, None])[0]
            grey = (depth * 255).round().to(torch.uint8)
            views.append((grey, dict(zip(TARGETS, latents.unbind(), strict=True))))
        save_whole(views, file)
    worker.wait()


class Samples:
    """Draws styles, views and windows of them."""

    def __init__(self, views: list[View], texts: dict[str, Tensor], empty_text: Tensor) -> None:
        self.views, self.texts, self.empty_text = views, texts, empty_text
        self.shares = torch.tensor(list(SHARES.values()))

    def draw(self, count: int, window: int, generator: torch.Generator) -> Batch:
        """`count` samples of `window` x `window` latents, shown their depth (n, 3, 4 w, 4 w), 0..1."""
        rows = [self._one(window, generator) for _ in range(count)]
        return Batch(*(torch.stack(column).float() for column in zip(*rows, strict=True)))

    def _one(self, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        style = list(SHARES)[int(torch.multinomial(self.shares, 1, generator=generator))]
        view = self.views[_index(len(self.views), generator)]
        target = view.targets[list(TINTS)[_index(len(TINTS), generator)] if style == "tint" else style]
        top = _index(target.shape[1] - window + 1, generator)
        left = _index(target.shape[2] - window + 1, generator)
        latents = target[:, top : top + window, left : left + window]
        rows, columns = (slice(FACTOR * at, FACTOR * (at + window)) for at in (top, left))
        depth = view.depth[:, rows, columns].expand(3, -1, -1) / 255
        described = UNKNOWN if style == "identity" and _index(2, generator) else style
        text = self.texts[described][_index(len(self.texts[described]), generator)]
        if torch.rand((), generator=generator).item() < 2 * DROPPED:
            text = self.empty_text
        return latents / RAW_DEVIATION, depth, text


def new_control_net(work: Path) -> ControlNetModel:
    """The untrained ControlNet: a copy of the lower half of `tiny-sd`'s U-Net, its outputs zero."""
    return ControlNetModel.from_unet(
        load_unet(TEXT_TO_IMAGE, work), conditioning_embedding_out_channels=(16, 32, 64)
    )


def train_depth(job: Job, snapshot: Callable[[], None]) -> None:
    """Train beside the frozen U-Net; see `train_denoiser` for what it leaves."""
    worker, work = job.worker, job.work
    torch.manual_seed(job.seed)
    unet = load_unet(TEXT_TO_IMAGE, work).to(worker.device)
    control_net = new_control_net(work).to(worker.device).train().requires_grad_(True)
    for model in (unet, control_net):  # see train_unet
        model.set_attn_processor(AttnProcessor())
    texts, empty_text = text_tables(TEXT_TO_IMAGE, work, job.seed)
    files = [_file(work, rank, worker.count) for rank in range(worker.count)]
    views = [View(*fields) for file in files for fields in torch.load(file, weights_only=True)]

    def predict(noisy: Tensor, times: Tensor, depth: Tensor, text: Tensor) -> Tensor:
        down, middle = control_net(
            noisy, times, encoder_hidden_states=text, controlnet_cond=depth, return_dict=False
        )
        return unet(
            noisy,
            times,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    train_denoiser(
        NAME,
        job,
        control_net,
        predict,
        Samples(views, texts, empty_text).draw,
        diffused,
        peak_learning_rate=PEAK_LEARNING_RATE,
        snapshot=snapshot,
    )


def load_control_net(work: Path) -> ControlNetModel:
    """The ControlNet with the averaged weights that `train_depth` left, frozen."""
    control_net = new_control_net(work)
    load_average(control_net, NAME, work)
    return control_net


def along_axis(distance: np.ndarray, camera: PinholeCamera) -> Tensor:
    """Distances from a camera along each pixel's ray, (H, W), as depths along its viewing axis."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = camera.directions(rows.ravel(), columns.ravel())  # (3, H W)
    cosines = (-camera.camera_to_world[:, 2] @ rays).reshape(camera.height, camera.width)
    return torch.from_numpy((distance * cosines).astype(np.float32))


def _file(work: Path, rank: int, count: int) -> Path:
    return work / f"views-{rank}-of-{count}.pt"


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator).item())
