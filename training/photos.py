"""The photos the bundled prior learns from, and those it must never see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.scenes.still_life import orbit_cameras, render
from training.progress import save_whole

HELD_OUT_SCENES = ("bear", "stone_horse")
HELD_OUT_OBJECTS = ("colorful_sneaker", "dog8", "skimage_chelsea", "teapot", "vase")
"""Objects of `data/photos` of which no photo is trained on; they are what evaluations use."""

LONGEST_SHORT_SIDE = 288
STILL_LIFE_VIEWS = 24
STILL_LIFE_SIZE = 192


@dataclass(frozen=True)
class Photo:
    """A training photo, and the same photo painted by the style network where there is such a pair."""

    name: str
    rgb: Tensor
    """(3, H, W) uint8."""
    painted: Tensor | None = None
    """(3, H, W) uint8."""


def shared_folder() -> Path:
    """Where the photos are: `CSD_NERF_SHARED`, or `../shared` next to the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("CSD_NERF_SHARED", beside))


def object_of(photo_name: str) -> str:
    """Name of the object a file of `data/photos` shows: `dog8_03` shows `dog8`."""
    stem, _, number = photo_name.rpartition("_")
    return stem if number.isdigit() else photo_name


def held_out_photos(shared: Path) -> list[Photo]:
    """The photos of `HELD_OUT_OBJECTS` with their painted pairs."""
    return [photo for photo in _painted_pairs(shared) if object_of(photo.name) in HELD_OUT_OBJECTS]


def cached_training_photos(shared: Path, cache: Path) -> list[Photo]:
    """`training_photos`, kept in the file `cache`."""
    if not cache.exists():
        save_whole([(photo.name, photo.rgb, photo.painted) for photo in training_photos(shared)], cache)
    return [Photo(*fields) for fields in torch.load(cache, weights_only=True)]


def scene_photos(shared: Path, scene: str, every: int) -> list[Photo]:
    """Every `every`-th photo of a captured scene."""
    files = _files(shared / "data/scenes" / scene / "images", "*.jpg")[::every]
    return [Photo(f"{scene}-{path.stem}", _load(path)) for path in files]


def training_photos(shared: Path) -> list[Photo]:
    """Every photo to train on: painted pairs, the garden scene, frames of two clips, the still life.

    Raises `InputError` when `shared` lacks the data.
    """
    photos = [photo for photo in _painted_pairs(shared) if object_of(photo.name) not in HELD_OUT_OBJECTS]
    photos += scene_photos(shared, "garden", every=2)
    for clip in training_clips(shared):
        frames = list(iio.imiter(clip, plugin="pyav"))
        for index, frame in enumerate(frames[::4]):
            photos.append(Photo(f"{clip.stem}-{index}", _tensor(Image.fromarray(frame))))
    for index, camera in enumerate(orbit_cameras(STILL_LIFE_VIEWS, size=STILL_LIFE_SIZE, seed=1)):
        rgb = torch.as_tensor(render(camera).rgb).permute(2, 0, 1)
        photos.append(Photo(f"still-life-{index}", (rgb * 255).round().to(torch.uint8)))
    return photos


def training_clips(shared: Path) -> list[Path]:
    """Files of the clips to train on.

    Raises `InputError` when `shared` lacks them.
    """
    return [_files(shared / "data/video", f"{clip}.mp4")[0] for clip in ("wolf", "car-turn")]


def resized(picture: Tensor, short_side: int) -> Tensor:
    """(3, H, W) uint8 to (3, h, w) float in 0..1 whose shorter side is `short_side`."""
    height, width = picture.shape[-2:]
    scale = short_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    small = F.interpolate(
        picture[None].float() / 255, size, mode="bicubic", antialias=True, align_corners=False
    )
    return small[0].clamp(0, 1)


def centre_square(picture: Tensor) -> Tensor:
    """The middle square of (..., H, W)."""
    side = min(picture.shape[-2:])
    top, left = (picture.shape[-2] - side) // 2, (picture.shape[-1] - side) // 2
    return picture[..., top : top + side, left : left + side]


def _painted_pairs(shared: Path) -> Iterator[Photo]:
    for path in _files(shared / "data/photos/original", "*.jpg"):
        painted = Image.open(shared / "data/photos/la_muse" / path.name).convert("RGB")
        original = Image.open(path).convert("RGB")
        yield Photo(
            path.stem, _tensor(original), _tensor(painted.resize(original.size, Image.Resampling.LANCZOS))
        )


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(
            "the training data is not there",
            expected=f"{pattern} in {folder}",
            got="no such file",
            hint="set CSD_NERF_SHARED to the folder that holds data/ and weights/",
        )
    return found


def _load(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return _tensor(picture.convert("RGB"))


def _tensor(picture: Image.Image) -> Tensor:
    scale = LONGEST_SHORT_SIDE / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
