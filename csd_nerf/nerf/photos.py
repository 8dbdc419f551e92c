"""Photos and masks of a capture, of any kind that files come in, at the size of their cameras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image, ImageOps
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.media import picture_files

_SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that exchange width and height."""

_UNKNOWN_RANGE = {"F": "floating point", "I": "32-bit integers", "LAB": "CIELAB colours"}
"""Modes of Pillow whose numbers are not known to be shades of red, green and blue."""

_transparency: dict[Path, bool] = {}
"""Of the files that were opened, whether they have any: those that were checked are not opened again."""


class PhotoDataset(InputDataset):
    """nerfstudio's, which reads palettes, CMYK, 16-bit grey and the like as what they show.

    nerfstudio takes the bytes of a file for its colours, whatever they are. Photos here are RGB, or RGBA
    where any photo of the split has transparency; masks are of one channel and of their photo's size.
    """

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """A photo (H, W, 3), or (H, W, 4) where any has transparency, at its camera's size.

        Raises:
            InputError: see `opened` and `seen_by_camera`; for a photo that is cut off.
        """
        path = self.image_filenames[image_idx]
        with opened(path) as photo:
            pixels = to_colours(seen_by_camera(photo, path, self._camera_size(image_idx)), self._transparent)
            if pixels.size != self._read_size(image_idx):
                pixels = pixels.resize(self._read_size(image_idx), Image.Resampling.BILINEAR)
        return np.array(pixels)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """A photo, and its mask where there are masks, as `InputDataset.get_data` gives them.

        Args:
            image_idx: of the photo.
            image_type: values 0..255, or 0..1.
        """
        read = self.get_image_uint8 if image_type == "uint8" else self.get_image_float32
        data: dict[str, Any] = {"image_idx": image_idx, "image": read(image_idx)}
        masks = self._dataparser_outputs.mask_filenames
        if masks is not None:
            data["mask"] = read_whole_mask(masks[image_idx], self._read_size(image_idx))
        if self.mask_color:
            data["image"] = torch.where(data["mask"], data["image"], torch.tensor(self.mask_color))
        return data | self.get_metadata(data)

    def _camera_size(self, index: int) -> tuple[int, int]:
        """Width and height of a photo's file, before it is reduced."""
        return _size(self._dataparser_outputs.cameras, index)

    def _read_size(self, index: int) -> tuple[int, int]:
        return _size(self.cameras, index)

    @cached_property
    def _transparent(self) -> bool:
        return any(_is_transparent(path) for path in self.image_filenames)


def _size(cameras: Any, index: int) -> tuple[int, int]:
    return int(cameras.width[index]), int(cameras.height[index])


def _is_transparent(path: Path) -> bool:
    if path not in _transparency:
        with opened(path):
            pass
    return _transparency[path]


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A photo or mask, of which only the header has been read.

    Raises:
        InputError: see `picture_files.opened`.
    """
    with picture_files.opened(path, "copy it again, or take its frame out of the capture") as photo:
        _transparency[path] = photo.has_transparency_data
        yield photo


def check_whole(photo: Image.Image, path: Path) -> None:
    """See that a file goes to its end: by the end marker of JPEG and PNG, else by reading all of it.

    Raises:
        OSError: it is cut off; `opened` makes an `InputError` of it.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 32))
        tail = file.read()
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(photo.format or "")
    if marker is None or marker not in tail:
        photo.load()


def seen_by_camera(photo: Image.Image, path: Path, size: tuple[int, int]) -> Image.Image:
    """The photo, turned as its EXIF says where only that fits its camera.

    Sizes may differ by the pixel that programs which reduce photos round up or down.

    Args:
        photo: of the file.
        path: to name it by.
        size: width and height of the camera, in pixels.

    Raises:
        InputError: when the photo is not of the camera's size either way.
    """
    if _close(photo.size, size):
        return photo
    sideways = photo.getexif().get(0x0112) in _SIDEWAYS
    if sideways and _close(photo.size[::-1], size):
        return ImageOps.exif_transpose(photo)
    across, down = (side / wanted for side, wanted in zip(photo.size, size, strict=True))
    if abs(across / down - 1) < 0.02:
        hint = (
            f"multiply its fl_x, fl_y, cx, cy, w and h by {across:g}, or use photos of the size that is said"
        )
    elif _close(photo.size[::-1], size):
        hint = "exchange w and h, cx and cy, fl_x and fl_y, or turn the photo"
    else:
        hint = "use the photos that the cameras were computed from, uncropped"
    raise InputError(
        f"the photo {path} is not of the size that its camera has",
        expected=f"{size[0]} x {size[1]} pixels (width x height), as its camera says",
        got=f"{photo.size[0]} x {photo.size[1]} pixels",
        hint=hint,
    )


def _close(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    return all(abs(side - other) <= 1 for side, other in zip(size, wanted, strict=True))


def check_mode(photo: Image.Image, path: Path) -> None:
    """See that a file's numbers are colours.

    Raises:
        InputError: for floating-point and 32-bit numbers, and CIELAB.
    """
    if photo.mode in _UNKNOWN_RANGE and not _is_grey_png(photo):
        raise InputError(
            f"{path} holds numbers that are no colours",
            expected="grey, RGB, palette or CMYK, of 8 or 16 bits",
            got=f"mode {photo.mode}: {_UNKNOWN_RANGE[photo.mode]}",
            hint="convert it to a PNG of 8 bits",
        )


def _is_grey_png(photo: Image.Image) -> bool:
    """Of 16 bits, which older versions of Pillow read as 32-bit numbers."""
    return photo.mode == "I" and photo.format == "PNG"


def to_colours(photo: Image.Image, transparent: bool) -> Image.Image:
    """The photo as RGB, or RGBA when `transparent`.

    Raises:
        InputError: see `check_mode`.
    """
    check_mode(photo, Path(getattr(photo, "filename", "")))
    if photo.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion cuts off at 255
        grey = np.asarray(photo).astype(np.float32) / 257
        photo = Image.fromarray(grey.round().astype(np.uint8))
    return photo.convert("RGBA" if transparent else "RGB")


def read_whole_mask(path: Path, size: tuple[int, int]) -> Bool[Tensor, "height width 1"]:
    """A mask of any mode: true where it is neither black nor transparent.

    Args:
        path: of the file.
        size: width and height that it is given.
    """
    with opened(path) as mask:
        values = np.array(_seen(mask).resize(size, Image.Resampling.NEAREST))
    return torch.from_numpy(values)[..., None] > 0


def has_white(path: Path) -> bool:
    """Whether a mask shows anything."""
    with opened(path) as mask:
        return _seen(mask).getbbox() is not None


def _seen(mask: Image.Image) -> Image.Image:
    """Of mode L: 255 where a mask is neither black nor transparent."""
    if mask.mode[0] in "IF":
        shown = np.asarray(mask) > 0
    else:
        colours = np.asarray(mask.convert("RGBA" if mask.has_transparency_data else "RGB"))
        shown = colours[..., :3].any(-1)
        if colours.shape[-1] == 4:
            shown &= colours[..., 3] > 0
    return Image.fromarray(shown.astype(np.uint8) * 255)


def check_mask_shape(mask: Image.Image, path: Path, size: tuple[int, int]) -> None:
    """See that a mask has its photo's proportions; its size may be another.

    Raises:
        InputError: when it was cropped, or turned.
    """
    (width, height), (wanted_width, wanted_height) = mask.size, size
    off = abs(width * wanted_height - height * wanted_width)
    if off > max(width, height, wanted_width, wanted_height):  # a pixel of rounding
        raise InputError(
            f"the mask {path} has another size than its photo, of other proportions",
            expected=f"{wanted_width} x {wanted_height} pixels (width x height), or a multiple of both",
            got=f"{width} x {height} pixels",
            hint="make the masks from the photos as they are in the dataset",
        )
