"""Pictures: read as they are meant, written whole or not at all, with what belongs to them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from csd_nerf.errors import InputError
from csd_nerf.media import Picture, check_picture_output, read_picture, write_picture

HEIGHT, WIDTH = 6, 9
COLORS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def values(tensor: torch.Tensor, most: int = 255) -> np.ndarray:
    """Numbers 0..most, (H, W, C)."""
    return (tensor * most).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_mode_becomes_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    if mode == "CMYK" and suffix == ".png":
        pytest.skip("PNG knows no CMYK")
    image = Image.fromarray(COLORS).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(COLORS[..., 0]))
    image.save(tmp_path / f"picture{suffix}")
    picture = read_picture(tmp_path / f"picture{suffix}")
    assert np.array_equal(values(picture.pixels), np.asarray(image.convert("RGB")))
    assert picture.bits == 8
    if mode.endswith("A"):
        assert picture.alpha is not None
        assert np.array_equal(values(picture.alpha)[..., 0], COLORS[..., 0])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_read_in_full(channels: int, suffix: str, tmp_path: Path) -> None:
    array = DEEP[..., :channels].squeeze()
    cv2.imwrite(str(tmp_path / f"deep{suffix}"), array)
    picture = read_picture(tmp_path / f"deep{suffix}")
    expected = np.repeat(DEEP[..., :1], 3, 2) if channels == 1 else DEEP[..., [2, 1, 0]]
    assert picture.bits == 16
    assert np.array_equal(values(picture.pixels, 65535), expected)
    assert (picture.alpha is not None) == (channels == 4)


def test_a_deep_png_keeps_bits_alpha_exif_and_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    pixels = torch.from_numpy(DEEP.astype(np.float32) / 65535).permute(2, 0, 1)
    written = Picture(pixels[:3], pixels[3:], bits=16, exif=exif.tobytes(), icc_profile=SRGB)
    write_picture(written, tmp_path / "deep.png")
    read = read_picture(tmp_path / "deep.png")
    assert read.bits == 16 and read.icc_profile == SRGB and read.exif == written.exif
    assert read.alpha is not None
    assert np.array_equal(values(read.pixels, 65535), DEEP[..., :3])
    assert np.array_equal(values(read.alpha, 65535), DEEP[..., 3:])
    with Image.open(tmp_path / "deep.png") as image:  # a whole PNG to others as well
        image.load()
        assert image.getexif()[0x010F] == "Camera maker"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_exif_profile_and_alpha_go_into_every_format_that_takes_them(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    flat = torch.full((3, 32, 48), 0.25)
    alpha = torch.zeros(1, 32, 48)
    picture = Picture(flat, alpha, exif=exif.tobytes(), icc_profile=SRGB)
    write_picture(picture, tmp_path / f"picture{suffix}")
    read = read_picture(tmp_path / f"picture{suffix}")
    assert read.icc_profile == SRGB
    assert read.exif is not None
    with Image.open(tmp_path / f"picture{suffix}") as image:
        assert image.getexif()[0x010F] == "Camera maker"
    if suffix == ".jpg":
        assert read.alpha is None
        assert read.pixels.min() > 0.99  # nothing but the white below
    else:
        assert read.alpha is not None and read.alpha.max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_orientation_is_applied_once(orientation: int, deep: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    path = tmp_path / "turned.png"
    if deep:
        pixels = torch.from_numpy(COLORS).permute(2, 0, 1) / 255
        write_picture(Picture(pixels, bits=16, exif=exif.tobytes()), path)
    else:
        Image.fromarray(COLORS).save(path, exif=exif)
    plain = Image.fromarray(COLORS)
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))

    picture = read_picture(path)
    assert np.array_equal(values(picture.pixels), expected)
    write_picture(picture, tmp_path / "again.png")
    assert np.array_equal(values(read_picture(tmp_path / "again.png").pixels), expected)


def test_a_profile_of_another_colour_space_is_not_carried(tmp_path: Path) -> None:
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    Image.fromarray(COLORS).convert("L").save(tmp_path / "grey.png", icc_profile=grey)
    assert read_picture(tmp_path / "grey.png").icc_profile is None


def whole(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.png", None, "no such file"),
        ("empty.png", b"", "an empty file"),
        ("text.png", b"not a picture", "no known picture format"),
        ("phone.jpg", b"\0\0\0\x24ftypheic\0\0\0\0", "HEIC"),
        ("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("cut.png", whole("PNG")[:4000], "a damaged file"),
        ("cut.jpg", whole("JPEG")[:2000], "a damaged file"),
        ("cut.webp", whole("WEBP")[:2000], "a damaged file"),
        ("header.png", whole("PNG")[:20], "file"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, content: bytes | None, part: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=part):
        read_picture(tmp_path / name)


def test_sequences_and_numbers_of_unknown_range_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="csd-nerf video"):
        read_picture(tmp_path / "moving.gif")
    Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="floating point"):
        read_picture(tmp_path / "float.tif")


def test_output_is_checked_before_work(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    (tmp_path / "folder.png").mkdir()
    for path, part in (
        (tmp_path / "there.png", "--force"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "picture.xyz", ".xyz"),
        (tmp_path / "picture", "no ending"),
        (tmp_path / "nowhere/picture.png", "no such folder"),
        (tmp_path / "there.png/picture.png", "a file of that name"),
    ):
        with pytest.raises(InputError, match=part):
            check_picture_output(path, force=False)
    check_picture_output(tmp_path / "there.png", force=True)
    check_picture_output(tmp_path / "NEW.JPG", force=False, size=(10, 65535))
    with pytest.raises(InputError, match="16383"):
        check_picture_output(tmp_path / "wide.webp", force=False, size=(10, 16384))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "there.png"]


def test_on_a_full_disk_the_old_picture_stays(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "picture.png"
    write_picture(Picture(torch.rand(3, 8, 8)), path)
    before = path.read_bytes()
    with full_disk(4096), pytest.raises(InputError, match="cannot be written"):
        write_picture(Picture(torch.rand(3, 128, 128)), path, force=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["picture.png"]


def test_an_existing_picture_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(Picture(torch.zeros(3, 8, 8)), path)
    with pytest.raises(InputError, match="already there"):
        write_picture(Picture(torch.ones(3, 8, 8)), path)
    assert read_picture(path).pixels.max() == 0
    write_picture(Picture(torch.ones(3, 8, 8)), path, force=True)
    assert read_picture(path).pixels.min() == 1


@pytest.mark.parametrize("kind", ["rgb16", "L", "CMYK", "P", "LAB", "1"])
def test_a_tiff_of_any_kind_becomes_a_tiff_that_opens(kind: str, tmp_path: Path) -> None:
    ramp = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    if kind == "rgb16":
        cv2.imwrite(str(tmp_path / "in.tif"), ramp.astype(np.uint16) * 257)
    else:
        Image.fromarray(ramp).convert("RGB").convert(kind).save(tmp_path / "in.tif")
    picture = read_picture(tmp_path / "in.tif")
    write_picture(picture, tmp_path / "out.tif")
    assert (read_picture(tmp_path / "out.tif").pixels - picture.pixels).abs().max() < 1 / 255


def test_a_cameras_exif_goes_into_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0100], exif[0x0101] = "Maker", 6, 32, 24
    exif.get_ifd(0x8769)[0x829A] = 0.01
    Image.new("RGB", (32, 24)).save(tmp_path / "in.jpg", exif=exif)
    write_picture(read_picture(tmp_path / "in.jpg"), tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as written:
        assert written.size == (24, 32)
        assert written.getexif()[0x010F] == "Maker"
        assert float(written.getexif().get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_exif_that_is_none_is_left_out(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in{suffix}"
    Image.new("RGB", (8, 8), (120, 120, 120)).save(path, exif=b"b'Exif\\x00\\x00MM\\x00*'")
    picture = read_picture(path)
    assert picture.exif is None
    assert picture.pixels.shape == (3, 8, 8)


def test_a_png_may_hold_long_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "in.png", pnginfo=text)
    assert read_picture(tmp_path / "in.png").pixels.shape == (3, 6, 8)


def test_pages_are_refused_in_their_own_words(tmp_path: Path) -> None:
    page = Image.new("RGB", (8, 6))
    page.save(tmp_path / "in.tif", save_all=True, append_images=[page])
    with pytest.raises(InputError) as raised:
        read_picture(tmp_path / "in.tif")
    assert "holds several pictures" in str(raised.value)
    assert "cannot be read" not in str(raised.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P"])
def test_a_mask_is_white_where_it_shows(mode: str, tmp_path: Path) -> None:
    """In whatever kind of file: white and black, or white with a transparent part."""
    shown = Image.new("L", (6, 4))
    shown.paste(255, (0, 0, 2, 4))
    mask = shown
    if mode.endswith("A"):
        mask = Image.new(mode.removesuffix("A"), shown.size, "white")
        mask.putalpha(shown)
    mask.convert(mode).save(tmp_path / "mask.png")
    white = read_picture(tmp_path / "mask.png").whiteness
    assert torch.equal(white, torch.from_numpy(np.asarray(shown)) / 255)


GPANO = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" '
    b'GPano:ProjectionType="equirectangular" GPano:FullPanoWidthPixels="128" '
    b'GPano:CroppedAreaImageWidthPixels="64"><GPano:PoseHeadingDegrees>12.5</GPano:PoseHeadingDegrees>'
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("name", ["o.png", "o.jpg", "o.webp", "o.tif", "deep.png"])
def test_a_sphere_stays_one(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "in.webp", xmp=GPANO)
    read = read_picture(tmp_path / "in.webp")
    half = Picture(read.pixels[:, ::2, ::2], bits=16 if name.startswith("deep") else 8, sphere=read.sphere)
    write_picture(half, tmp_path / name)
    assert read_picture(tmp_path / name).sphere == {
        "ProjectionType": "equirectangular",
        "FullPanoWidthPixels": "64",
        "CroppedAreaImageWidthPixels": "32",
        "PoseHeadingDegrees": "12.5",
    }
    Image.new("RGB", (64, 32)).save(tmp_path / "flat.png")
    assert read_picture(tmp_path / "flat.png").sphere is None
