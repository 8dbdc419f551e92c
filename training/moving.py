"""Moving pictures under every edit, encoded once, for the layers of motion of `tiny-video`.

A window that travels over a photo, frames of clips, and a camera that travels past the procedural still life.
Every edit is made of each frame alike, so that a clip has one look, and one tint, from its first frame to its
last.
"""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csd_nerf.scenes.casting import PinholeCamera, look_at
from csd_nerf.scenes.operators import OPERATORS, TINTS
from csd_nerf.scenes.still_life import render
from csd_nerf.seeds import step_seed
from training.latents import PAINTED, TARGETS, Variant
from training.parallel import Worker
from training.photos import Photo, resized, training_clips
from training.progress import save_whole
from training.vae import load_vae

FRAMES = 8
SIDE = 96
"""Pixels, of the square frames."""
CLIPS = {"photos": 160, "films": 40, "still life": 24}
"""How many of each kind."""
SHORT_SIDES = (112, 200)
"""Pixels, of the photo that a window travels over."""
FASTEST = 4.0
"""Pixels a frame, along either side."""
SAVED_EVERY = 10
"""Clips."""
LONGEST_STRIDE = 3
"""Frames of a film from one frame of a clip to the next."""


def write_moving(
    worker: Worker, photos: list[Photo], films: list[list[Tensor]], work: Path, seed: int
) -> None:
    """Encode this worker's share of the clips to `work/moving-RANK-of-COUNT.pt`, where a killed run goes on.

    Args:
        photos: to travel over.
        films: frames (3, H, W) uint8 of each.
    """
    file = _file(work, worker.rank, worker.count)
    clips = torch.load(file, weights_only=True) if file.exists() else []
    vae = load_vae(work, worker.device)

    @torch.no_grad()
    def encode(frames: Tensor) -> Tensor:
        """(F, 3, H, W) to (4, F, h, w)."""
        with torch.autocast(worker.device.type, torch.bfloat16):
            mean = vae.encode(frames.to(worker.device) * 2 - 1).latent_dist.mode()
        return mean.half().cpu().transpose(0, 1).contiguous()

    share = range(worker.rank, sum(CLIPS.values()), worker.count)
    for index in share[len(clips) :]:
        frames, painted = _clip(index, photos, films, torch.Generator().manual_seed(step_seed(seed, index)))
        targets = {}
        for name in TARGETS:
            edit = OPERATORS[name].apply if name in OPERATORS else TINTS[name]
            targets[name] = encode(torch.stack([edit(frame) for frame in frames]))
        variants = [(targets["identity"], targets)]
        if painted is not None:
            variants.append((targets["identity"], {PAINTED: encode(painted)}))
        clips.append(variants)
        if len(clips) % SAVED_EVERY == 0 or len(clips) == len(share):
            save_whole(clips, file)
            if worker.leads:
                print(f"clip {index} of {sum(CLIPS.values())}", flush=True)
    worker.wait()


def read_moving(work: Path, count: int) -> list[Variant]:
    """What the `count` workers of `write_moving` wrote; latents (4, F, h, w)."""
    files = [_file(work, rank, count) for rank in range(count)]
    return [
        Variant(*fields)
        for file in files
        for variants in torch.load(file, weights_only=True)
        for fields in variants
    ]


def travelling(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A window that travels over pictures, and comes a little nearer or goes away.

    Args:
        pictures: that are taken alike, (n, 3, H, W) in 0..1, sides of `SIDE` pixels at least.

    Returns:
        (n, F, 3, SIDE, SIDE).
    """
    size = torch.tensor(pictures.shape[-2:]) * 1.0
    zoom = 1 - torch.linspace(0, 0.2, FRAMES) * torch.rand((), generator=generator)
    if torch.rand((), generator=generator) < 0.5:
        zoom = zoom.flip(0)
    half = SIDE / 2 * zoom[:, None]  # (F, 1)
    speed = (2 * torch.rand(2, generator=generator) - 1) * FASTEST
    start = SIDE / 2 + torch.rand(2, generator=generator) * (size - SIDE)
    centres = start + torch.arange(FRAMES)[:, None] * speed
    centres = torch.minimum(torch.maximum(centres, half), size - half)
    steps = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    rows = (centres[:, :1] + half * steps) / size[0] * 2 - 1  # (F, SIDE), -1..1 over the picture
    columns = (centres[:, 1:] + half * steps) / size[1] * 2 - 1
    grid = torch.stack([columns[:, None].expand(-1, SIDE, -1), rows[:, :, None].expand(-1, -1, SIDE)], dim=-1)
    windows = [
        F.grid_sample(
            picture.expand(FRAMES, -1, -1, -1), grid, "bicubic", padding_mode="border", align_corners=False
        )
        for picture in pictures
    ]
    return torch.stack(windows).clamp(0, 1)


def film_frames(shared: Path) -> list[list[Tensor]]:
    """The frames of the training clips, (3, H, W) uint8."""
    return [
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in iio.imiter(file, plugin="pyav")]
        for file in training_clips(shared)
    ]


def past_the_still_life(generator: torch.Generator) -> list[PinholeCamera]:
    """Cameras on an arc about the table, all looking at one point."""
    azimuth, step, height, distance, lens, x, y, z = torch.rand(8, generator=generator).tolist()
    target = np.array([0.0, 0.0, 0.25]) + 0.6 * (np.array([x, y, z]) - 0.5)
    elevation, length = np.radians(12 + 45 * height), 1.3 + 1.6 * distance
    focal = 0.5 * SIDE / np.tan(np.radians(40 + 25 * lens) / 2)
    cameras = []
    for frame in range(FRAMES):
        angle = 2 * np.pi * azimuth + np.radians(10 * (step - 0.5)) * frame
        across = np.cos(elevation)
        direction = np.array([np.cos(angle) * across, np.sin(angle) * across, np.sin(elevation)])
        position = target + length * direction
        position[2] = max(position[2], 0.25)
        cameras.append(PinholeCamera(look_at(position, target), float(focal), SIDE, SIDE))
    return cameras


def _clip(
    index: int, photos: list[Photo], films: list[list[Tensor]], generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Frames (F, 3, SIDE, SIDE) of the clip with this number, and the same painted where a photo is."""
    if index < CLIPS["photos"]:
        photo = photos[_index(len(photos), generator)]
        side = SHORT_SIDES[0] + _index(SHORT_SIDES[1] - SHORT_SIDES[0], generator)
        pair = [photo.rgb] if photo.painted is None else [photo.rgb, photo.painted]
        windows = travelling(torch.stack([resized(picture, side) for picture in pair]), generator)
        return windows[0], windows[1] if len(windows) > 1 else None
    if index < CLIPS["photos"] + CLIPS["films"]:
        return _of_film(films[_index(len(films), generator)], generator), None
    views = [render(camera, samples_per_side=2).rgb for camera in past_the_still_life(generator)]
    return torch.stack([torch.as_tensor(view).permute(2, 0, 1).float() for view in views]), None


def _of_film(film: list[Tensor], generator: torch.Generator) -> Tensor:
    stride = 1 + _index(min(LONGEST_STRIDE, (len(film) - 1) // (FRAMES - 1)), generator)
    first = _index(len(film) - stride * (FRAMES - 1), generator)
    side = SIDE + _index(SIDE // 2, generator)
    frames = torch.stack([resized(film[first + stride * number], side) for number in range(FRAMES)])
    top, left = (_index(length - SIDE + 1, generator) for length in frames.shape[-2:])
    frames = frames[..., top : top + SIDE, left : left + SIDE]
    return frames.flip(-1) if _index(2, generator) else frames


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator).item())


def _file(work: Path, rank: int, count: int) -> Path:
    return work / f"moving-{rank}-of-{count}.pt"
