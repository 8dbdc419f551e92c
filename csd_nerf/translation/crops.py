"""The pictures that a translator learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from csd_nerf.errors import InputError
from csd_nerf.media import PICTURE_SUFFIXES, read_picture
from csd_nerf.media.clips import frame_files

KEPT_SIDES = 2
"""Pictures are kept with a short side of so many crops' sides, and not larger."""


class Crops:
    """Square parts of pictures at all scales, from all of the short side down to half of what is kept.

    In memory is every picture, reduced to a short side of two crops, a byte a number.

    Args:
        pictures: (3, H, W), RGB in 0..1, of any sizes.
        size: side of the crops in pixels.
        done: called after each picture with how many are reduced.
    """

    def __init__(
        self,
        pictures: Sequence[Float[Tensor, "3 _ _"]],
        size: int,
        done: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.size = size
        self._kept: list[UInt8[Tensor, "3 _ _"]] = []
        digest = hashlib.sha256()
        for number, picture in enumerate(pictures, start=1):
            self._kept.append(_reduced(picture, size))
            digest.update(self._kept[-1].numpy().tobytes())
            done(number)
        self.digest = digest.hexdigest()
        """Tells these pictures from others."""

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count 3 size size"]:
        """Crops of pictures drawn at random, half of them mirrored.

        Args:
            count: how many.
            generator: source of all that is random.
        """
        return torch.stack([self._one(generator) for _ in range(count)])

    def shown(self, count: int) -> Float[Tensor, "shown 3 size size"]:
        """The middle of the first pictures, for somebody who watches."""
        return torch.stack([self._cut(picture, min(picture.shape[1:])) for picture in self._kept[:count]])

    def _one(self, generator: torch.Generator) -> Tensor:
        picture = self._kept[_index(len(self._kept), generator)]
        short = min(picture.shape[1:])
        side = self.size + _index(short - self.size + 1, generator)
        top, left = (_index(length - side + 1, generator) for length in picture.shape[1:])
        crop = self._cut(picture, side, top, left)
        return crop.flip(-1) if _index(2, generator) else crop

    def _cut(self, picture: Tensor, side: int, top: int | None = None, left: int | None = None) -> Tensor:
        height, width = picture.shape[1:]
        top = (height - side) // 2 if top is None else top
        left = (width - side) // 2 if left is None else left
        part = picture[None, :, top : top + side, left : left + side].float() / 255
        return _resized(part, (self.size, self.size))[0]


class Pictures(Sequence[Tensor]):
    """Pictures on disk, (3, H, W), RGB in 0..1; each is read when it is asked for.

    Args:
        files: of the pictures.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return read_picture(self._files[index]).pixels


def folder_of_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder.

    Raises:
        InputError: no such folder, or none in it.
    """
    files = frame_files(folder) if folder.is_dir() else []
    if not files:
        raise InputError(
            f"{folder} holds no pictures" if folder.is_dir() else f"there is no folder {folder}",
            expected="a folder with pictures: " + ", ".join(PICTURE_SUFFIXES),
            got="none of these in it"
            if folder.is_dir()
            else "a file"
            if folder.exists()
            else "nothing there",
            hint="pass the folder that holds the pictures themselves",
        )
    return files


def _reduced(picture: Tensor, size: int) -> Tensor:
    """Bytes of a picture whose short side is between one and `KEPT_SIDES` crops' sides."""
    height, width = picture.shape[1:]
    short = min(height, width)
    scale = min(max(short, size), KEPT_SIDES * size) / short
    small = _resized(picture[None], (max(round(height * scale), size), max(round(width * scale), size)))[0]
    return (small.clamp(0, 1) * 255).round().byte()


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[2:]) == size:
        return pictures
    return functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
