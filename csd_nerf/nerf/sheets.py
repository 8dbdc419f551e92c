"""What an edit leaves to look at: before/after sheets and a turntable video."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.media import Picture, write_clip, write_picture


def sheet(rows: Iterable[Float[Tensor, "n 3 h w"]], gap: int = 4) -> Float[Tensor, "height width 3"]:
    """Pictures laid out in rows on white, (H, W, 3), 0..1."""
    lines = []
    for images in rows:
        padded = [_pad(image.permute(1, 2, 0), gap) for image in images]
        lines.append(torch.cat(padded, dim=1))
    return torch.cat(lines, dim=0)[: -gap or None, : -gap or None]


def _pad(image: Tensor, gap: int) -> Tensor:
    padded = image.new_ones(image.shape[0] + gap, image.shape[1] + gap, 3)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def save_png(picture: Float[Tensor, "h w 3"], path: Path) -> None:
    """Write a picture (0..1); an older one of that name is replaced only by a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(Picture(picture.permute(2, 0, 1)), path, force=True)


def save_video(frames: Iterable[Float[Tensor, "h w 3"]], path: Path, frames_per_second: int = 24) -> None:
    """Write an H.264 video that browsers play; an older one is replaced only by a whole one.

    Args:
        frames: pictures of one size, 0..1; an odd side grows by a pixel.
        path: ending in .mp4.
        frames_per_second: playback rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    channels_first = (frame.permute(2, 0, 1) for frame in frames)
    write_clip(channels_first, path, frame_rate=Fraction(frames_per_second), force=True)
