"""Pictures as tensors, with what else was in their file: alpha, bit depth, EXIF and colour profile."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from csd_nerf.errors import InputError
from csd_nerf.files import check_output, whole_file
from csd_nerf.media.spheres import XMP_IN_PNG, jpeg_segment, packet, read_sphere

log = logging.getLogger(__name__)

# Programs that make pictures write how into the file, at times more than the 1 MiB that Pillow takes.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

PICTURE_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Endings of pictures and their format."""

LARGEST_SIDE = {"JPEG": 65535, "WEBP": 16383}
"""In pixels, of the formats that have such a limit."""

QUALITY = 95
"""Of JPEG and WebP files, 0..100."""

_WITH_ALPHA = ("PNG", "WEBP", "TIFF")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": QUALITY, "subsampling": 0},
    "WEBP": {"quality": QUALITY},
    "TIFF": {"compression": "tiff_deflate"},
}
_HOW_TO_MEND = "check that the file is whole, and that other programs open it"
_HEIC = (b"heic", b"heix", b"hevc", b"mif1")
_ORIENTATION_TAG = 0x0112
_XMP_TAG = 0x02BC
# EXIF shares its directory with TIFF, whose tags below this number tell how pixels are stored, but for a few.
_END_OF_TIFF_TAGS = 0x0300
_TAGS_ABOUT_THE_PICTURE = {
    *(0x010D, 0x010E, 0x010F, 0x0110),  # name, description, maker, model
    *(0x011A, 0x011B, 0x0128),  # resolution
    *(0x0131, 0x0132, 0x013B, 0x013C),  # software, date, artist, computer
    _XMP_TAG,
}
_PROFILE_TAG = 0x8773
_SUB_DIRECTORIES = {0x8769, 0x8825}  # of the exposure, of the place
# How an array (H, W, ...) becomes upright, by the EXIF orientation.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: array[::-1].swapaxes(0, 1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: array[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class Picture:
    """A picture, upright, and what its file said besides.

    Args:
        pixels: RGB in 0..1. A greyscale picture has three equal channels.
        alpha: opacity in 0..1; None when every pixel is opaque by format.
        bits: per channel in the file, 8 or 16.
        exif: EXIF block without the orientation, which has been applied, and without tags that tell how the
            pixels were stored in the file.
        icc_profile: colour profile of `pixels`; None is sRGB. Pixels are the file's numbers, not converted.
        sphere: what its XMP says of it as part of a sphere (GPano), by name; None of other pictures.
    """

    pixels: Float[Tensor, "3 h w"]
    alpha: Float[Tensor, "1 h w"] | None = None
    bits: int = 8
    exif: bytes | None = None
    icc_profile: bytes | None = None
    sphere: Mapping[str, str] | None = None

    @property
    def whiteness(self) -> Float[Tensor, "h w"]:
        """How white it is as a mask, 0..1; what is transparent counts as black."""
        grey = self.pixels.mean(0)
        return grey if self.alpha is None else grey * self.alpha[0]


def read_picture(path: Path) -> Picture:
    """Read a picture: PNG, JPEG, WebP, TIFF and what else Pillow knows, of any mode, 8 or 16 bits deep.

    The EXIF orientation is applied. Palette, greyscale, CMYK and 1-bit pictures become RGB.

    Raises:
        InputError: no such file; one that is empty, truncated or no picture; a sequence of pictures; one of
            floating-point or 32-bit numbers, whose range is not known; one too large for Pillow (179 million
            pixels).
    """
    if not path.is_file():
        raise InputError(
            f"there is no picture {path}",
            expected="a PNG, JPEG, WebP or TIFF file",
            got="a folder" if path.is_dir() else "no such file",
            hint="check the path",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with opened(path) as image:
            _check_single(image, path)
            image.load()
            orientation, exif = _exif(image, path)
            upright = _UPRIGHT.get(orientation, lambda array: array)
            deep = _is_deep(image, path)
            values = upright(_deep_values(path) if deep else _values(image, path))  # (H, W, 3 or 4)
            profile, sphere = image.info.get("icc_profile"), read_sphere(image)
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))
    tensor /= 65535 if deep else 255
    return Picture(
        pixels=tensor[:3],
        alpha=tensor[3:] if len(tensor) == 4 else None,
        bits=16 if deep else 8,
        exif=exif,
        # Profiles of other colour spaces do not describe RGB numbers.
        icc_profile=profile if profile and profile[16:20] == b"RGB " else None,
        sphere=sphere,
    )


@contextmanager
def opened(path: Path, hint: str = _HOW_TO_MEND) -> Iterator[Image.Image]:
    """A picture of which only the header has been read.

    Args:
        path: of the file.
        hint: what to do when it cannot be read.

    Raises:
        InputError: when it is not there, empty, no picture or too large for Pillow; within the block, when
            its pixels turn out to be damaged.
    """
    try:
        with Image.open(path) as image:
            yield image
    except InputError:  # a ValueError as well
        raise
    except UnidentifiedImageError as error:
        raise _unreadable(path, _what_else(path), hint) from error
    except Image.DecompressionBombError as error:
        raise _unreadable(path, str(error).split(",")[0], hint) from error
    except OSError as error:  # of the system, which has a word for it, or of Pillow
        raise _unreadable(path, error.strerror or f"a damaged file ({error})", hint) from error
    except (SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
        raise _unreadable(path, f"a damaged file ({error})", hint) from error


def check_picture_output(path: Path, *, force: bool, size: tuple[int, int] | None = None) -> None:
    """See that a picture can be written, before the work that makes it.

    Args:
        path: where it is to be; its ending says the format.
        force: it may replace a file that is there.
        size: height and width, if they are known.

    Raises:
        InputError: as `check_output`; a picture larger than the format allows.
    """
    check_output(path, PICTURE_SUFFIXES, force=force)
    kind = PICTURE_SUFFIXES[path.suffix.lower()]
    if size is not None and max(size) > LARGEST_SIDE.get(kind, max(size)):
        raise InputError(
            f"the picture is too large for {kind}",
            expected=f"at most {LARGEST_SIDE[kind]} pixels a side",
            got=f"{size[1]} x {size[0]} pixels",
            hint="write a .png or .tif instead",
        )


def write_picture(picture: Picture, path: Path, *, force: bool = False) -> None:
    """Write a picture in the format that the ending says; an older one is replaced only by a whole one.

    EXIF and colour profile go into every format. Alpha goes into PNG, WebP and TIFF; in JPEG the picture is
    laid on white. 16 bits are kept in PNG; other formats get 8.

    Args:
        picture: what to write; pixels outside of 0..1 are clipped.
        path: ending in one of `PICTURE_SUFFIXES`.
        force: replace a file that is there.

    Raises:
        InputError: as `check_picture_output`; no room on the disk.
    """
    check_picture_output(path, force=force, size=(picture.pixels.shape[1], picture.pixels.shape[2]))
    kind = PICTURE_SUFFIXES[path.suffix.lower()]
    pixels = picture.pixels.detach().float().cpu()
    if picture.alpha is not None:
        alpha = picture.alpha.detach().float().cpu()
        if kind in _WITH_ALPHA:
            pixels = torch.cat([pixels, alpha])
        else:
            pixels = pixels * alpha + (1 - alpha)
            log.warning("%s has no transparency: laid on white", path.name)
    channels_last = pixels.permute(1, 2, 0)
    with whole_file(path) as partial:
        if picture.bits == 16 and kind == "PNG":
            partial.write_bytes(_deep_png(channels_last, picture))
            return
        if picture.bits == 16:
            log.warning("%s is written with 8 bits per channel; PNG keeps 16", path.name)
        belongings = {"exif": picture.exif, "icc_profile": picture.icc_profile}
        options = {name: value for name, value in belongings.items() if value} | _SAVE_OPTIONS[kind]
        if picture.sphere:
            options |= _sphere_options(kind, packet(picture.sphere, picture.pixels.shape[2]), picture.exif)
        if kind == "TIFF" and picture.exif and _has_sub_directories(picture.exif):
            options["compression"] = "raw"  # libtiff, which compresses, cannot be given sub-directories
        Image.fromarray(to_bytes(channels_last)).save(partial, format=kind, **options)


def to_bytes(picture: Float[Tensor, "h w c"]) -> np.ndarray:
    """8-bit numbers of a picture in 0..1."""
    return (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def _exif(image: Any, path: Path) -> tuple[int, bytes | None]:
    """The orientation and the rest of the EXIF block; 1 and None where there is none that can be read."""
    try:
        exif = image.getexif()
        orientation = exif.pop(_ORIENTATION_TAG, 1)
        for tag in list(exif):
            stored = tag < _END_OF_TIFF_TAGS and tag not in _TAGS_ABOUT_THE_PICTURE
            if stored or tag == _PROFILE_TAG:
                del exif[tag]
        return orientation, exif.tobytes() if exif else None
    except (SyntaxError, struct.error) as error:
        log.warning("%s: its EXIF is damaged and is left out (%s)", path.name, error)
        return 1, None


def _sphere_options(kind: str, xmp: bytes, exif: bytes | None) -> dict[str, Any]:
    """How Pillow is told to write XMP."""
    if kind == "JPEG":
        return {"extra": jpeg_segment(xmp)}
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(XMP_IN_PNG, xmp.decode())
        return {"pnginfo": text}
    if kind == "WEBP":
        return {"xmp": xmp}
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    tags[_XMP_TAG] = xmp
    return {"exif": tags.tobytes()}


def _has_sub_directories(block: bytes) -> bool:
    exif = Image.Exif()
    exif.load(block)
    return not _SUB_DIRECTORIES.isdisjoint(exif)


def _check_single(image: Any, path: Path) -> None:
    # A phone's JPEG may hold further pictures (MPO), of which the first is the photo.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise InputError(
            f"{path} holds several pictures",
            expected="a single picture",
            got=f"a {image.format} of {image.n_frames} pictures",
            hint="edit animations with `csd-nerf video`, and pages one by one",
        )


def _is_deep(image: Any, path: Path) -> bool:
    """Whether the file has 16 bits per channel, which Pillow reads as 8 for all but greyscale."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24] == 16  # bit depth in the header chunk
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) == 16  # BitsPerSample
    return False


def _deep_values(path: Path) -> np.ndarray:
    """Values 0..65535 of a 16-bit picture, (H, W, 3) or with alpha (H, W, 4)."""
    import cv2

    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise _unreadable(path, "a 16-bit picture of an uncommon kind")
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    return values[..., [2, 1, 0, 3][: values.shape[2]]]


def _values(image: Any, path: Path) -> np.ndarray:
    """Values 0..255 of a picture, (H, W, 3) or with alpha (H, W, 4)."""
    if image.mode in ("F", "I"):
        raise InputError(
            f"{path} holds numbers of unknown range",
            expected="8 or 16 bits per channel",
            got=f"mode {image.mode}: " + ("floating point" if image.mode == "F" else "32-bit integers"),
            hint="convert it to a 16-bit PNG",
        )
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _deep_png(pixels: Float[Tensor, "h w c"], picture: Picture) -> bytes:
    """A 16-bit PNG with EXIF and colour profile, which OpenCV encodes without them."""
    import cv2

    values = (pixels.double().clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
    _, encoded = cv2.imencode(".png", values[..., [2, 1, 0, 3][: values.shape[2]]])
    data = encoded.tobytes()
    chunks = b""
    if picture.icc_profile:
        chunks += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.exif:
        chunks += _png_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    if picture.sphere:
        xmp = packet(picture.sphere, pixels.shape[1])
        chunks += _png_chunk(b"iTXt", XMP_IN_PNG.encode() + bytes(5) + xmp)
    header = 8 + 12 + 13  # signature, then the header chunk, after which these may stand
    return data[:header] + chunks + data[header:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of the PNG format: length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the picture: run `git lfs pull` where it came from"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "a HEIC picture, as iPhones write them, which cannot be read: convert it to JPEG"
    return "a file in no known picture format"


def _unreadable(path: Path, got: str, hint: str = _HOW_TO_MEND) -> InputError:
    return InputError(
        f"{path} cannot be read as a picture",
        expected="a whole PNG, JPEG, WebP or TIFF file",
        got=got,
        hint=hint,
    )
