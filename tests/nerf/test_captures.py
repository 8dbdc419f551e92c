"""Captures as people have them: what the training would read wrongly is put right, or refused in words."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nerf_runs import make_config, run
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from rich.console import Console

from csd_nerf.errors import InputError
from csd_nerf.nerf import captures
from csd_nerf.nerf.captures import check_dataset
from csd_nerf.nerf.datamanager import SceneDataManagerConfig
from csd_nerf.nerf.photos import PhotoDataset

Meta = dict[str, Any]
Fault = Callable[[Path, Meta], None]


@pytest.fixture
def changed(dataset: Path, tmp_path: Path) -> Callable[[Fault], Path]:
    """Makes a copy of the still life, changed by a function of its folder and transforms.json."""

    def change(fault: Fault) -> Path:
        folder = tmp_path / "data"
        shutil.copytree(dataset, folder)
        meta = json.loads((folder / "transforms.json").read_text())
        fault(folder, meta)
        (folder / "transforms.json").write_text(json.dumps(meta))
        return folder

    return change


def split(folder: Path, **options: Any) -> PhotoDataset:
    parser = NerfstudioDataParserConfig(data=folder, **options).setup()
    return PhotoDataset(parser.get_dataparser_outputs("train"))


def photos(convert: Callable[[Image.Image], Image.Image], ending: str = ".png", every: int = 1) -> Fault:
    """Each photo, or every other, stored as `convert` makes it."""

    def fault(folder: Path, meta: Meta) -> None:
        for frame in meta["frames"][::every]:
            path = folder / frame["file_path"]
            picture = Image.open(path).convert("RGB")
            path.unlink()
            path = path.with_suffix(ending)
            convert(picture).save(path)
            frame["file_path"] = str(path.relative_to(folder))

    return fault


def masks(picture: Callable[[], Image.Image]) -> Fault:
    def fault(folder: Path, meta: Meta) -> None:
        for number, frame in enumerate(meta["frames"]):
            frame["mask_path"] = f"mask{number}.png"
            picture().save(folder / frame["mask_path"])

    return fault


def disc(size: int = 32) -> Image.Image:
    grey = Image.new("L", (size, size))
    grey.paste(255, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    return grey


def first(content: bytes | None) -> Fault:
    """The first photo with this content; None for half of its own."""

    def fault(folder: Path, meta: Meta) -> None:
        path = folder / meta["frames"][0]["file_path"]
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if content is None else content)

    return fault


def frames(**entries: Any) -> Fault:
    return lambda folder, meta: [frame.update(entries) for frame in meta["frames"]]  # type: ignore[return-value]


def one_frame(**entries: Any) -> Fault:
    return lambda folder, meta: meta["frames"][3].update(entries)


def lens(**entries: Any) -> Fault:
    return lambda folder, meta: meta.update(entries)


def tripod(folder: Path, meta: Meta) -> None:
    for frame in meta["frames"]:
        for row in frame["transform_matrix"][:3]:
            row[3] = 1.5


def grey16(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def renamed(ending: str) -> Fault:
    def fault(folder: Path, meta: Meta) -> None:
        for frame in meta["frames"]:
            frame["file_path"] = str(Path(frame["file_path"]).with_suffix(ending))

    return fault


def backslashes(folder: Path, meta: Meta) -> None:
    for frame in meta["frames"]:
        frame["file_path"] = frame["file_path"].replace("/", "\\")


def depth_in_all_but_one(folder: Path, meta: Meta) -> None:
    frames(depth_file_path="depth.png")(folder, meta)
    del meta["frames"][3]["depth_file_path"]


def without_photos(count: int) -> Fault:
    def fault(folder: Path, meta: Meta) -> None:
        for frame in meta["frames"][:count]:
            (folder / frame["file_path"]).unlink()

    return fault


def poses_of_three_rows(folder: Path, meta: Meta) -> None:
    for frame in meta["frames"]:
        frame["transform_matrix"] = frame["transform_matrix"][:3]


def no_test_split(folder: Path, meta: Meta) -> None:
    files = [frame["file_path"] for frame in meta["frames"]]
    meta["train_filenames"], meta["val_filenames"] = files[:-2], files[-2:]


def byte_order_mark(folder: Path) -> None:
    file = folder / "transforms.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (first(None), "damaged file"),
        (first(b""), "an empty file"),
        (first(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "git lfs pull"),
        (first(b"what is this"), "no known picture format"),
        (frames(mask_path=3), "take mask_path out"),
        (depth_in_all_but_one, "11 of 12 frames with one"),
        (one_frame(file_path=7), "is no path"),
        (one_frame(transform_matrix=[[math.nan] * 4] * 4), "not finite"),
        (one_frame(transform_matrix=[[0] * 4] * 4), "flattens everything"),
        (one_frame(transform_matrix="none"), "4 x 4"),
        (one_frame(transform_matrix=[[1, 2], [3]]), "4 x 4"),
        (tripod, "in one place"),
        (lambda folder, meta: meta.update(frames=meta["frames"][:1]), "one photo"),
        (lambda folder, meta: meta.update(frames=["a.png"]), "list of objects"),
        (lens(w=64, h=64), "multiply its fl_x"),
        (lens(w=16, h=16), "by 2"),
        (lens(w=64), "uncropped"),
        (lens(fl_x="wide"), "fl_x that is no size"),
        (lens(h=0), "h that is no size"),
        (lens(k1=math.nan), "k1 that is no number"),
        (lens(camera_model="THIN_PRISM_FISHEYE"), "image_undistorter"),
        (lens(train_filenames=[], val_filenames=[]), "train_filenames"),
        (
            lens(train_filenames=["nowhere.png"], val_filenames=[], test_filenames=[]),
            "such as nowhere.png",
        ),
        (without_photos(7), "7 of 12 images"),
        (photos(lambda picture: picture.convert("F"), ".tif"), "floating point"),
        (masks(lambda: Image.new("L", (32, 32))), "all black"),
        (masks(lambda: disc().crop((0, 0, 32, 20))), "of other proportions"),
    ],
)
def test_what_cannot_be_used_is_refused(fault: Fault, words: str, changed: Callable[[Fault], Path]) -> None:
    with pytest.raises(InputError) as refused:
        check_dataset(changed(fault), NerfstudioDataParserConfig())
    assert words in str(refused.value)
    assert str(refused.value).count("do this:") == 1


@pytest.mark.parametrize(
    ("fault", "photos_left"),
    [
        (frames(mask_path=None, depth_file_path=None), 12),
        (lens(k1=None), 12),
        (poses_of_three_rows, 12),
        (backslashes, 12),
        (renamed(""), 12),
        (renamed(".PNG"), 12),
        (lens(camera_model="SIMPLE_RADIAL_FISHEYE"), 12),
        (no_test_split, 12),
        (without_photos(5), 7),
    ],
)
def test_what_can_be_put_right_is_read_as_meant(
    fault: Fault, photos_left: int, dataset: Path, changed: Callable[[Fault], Path], capsys: Any
) -> None:
    """The data manager, which every method uses, gives the cameras and photos of the whole capture."""
    folder = changed(fault)
    byte_order_mark(folder)
    parser = NerfstudioDataParserConfig()
    check_dataset(folder, parser)
    assert ("5 of 12 photos" in capsys.readouterr().out.replace("\n", " ")) == (photos_left == 7)
    manager = SceneDataManagerConfig(data=folder, dataparser=parser).setup(device="cpu", test_mode="test")
    names = [
        name for split in (manager.train_dataset, manager.eval_dataset) for name in split.image_filenames
    ]
    assert len({name.name for name in names}) == photos_left
    plain = SceneDataManagerConfig(data=dataset, dataparser=NerfstudioDataParserConfig()).setup(
        device="cpu", test_mode="test"
    )
    if fault is not no_test_split and photos_left == 12:
        torch.testing.assert_close(
            manager.train_dataset.cameras.camera_to_worlds, plain.train_dataset.cameras.camera_to_worlds
        )
    photo = manager.train_dataset.get_image_float32(0)
    index = [path.name for path in plain.train_dataset.image_filenames + plain.eval_dataset.image_filenames]
    assert manager.train_dataset.image_filenames[0].name in index and photo.shape == (32, 32, 3)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf{}", b"[]", b"[" * 100_000, b"\xff", b"3", b'{"frames": 3}', b'{"frames": {}}']
)
def test_a_transforms_json_of_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(InputError):
        check_dataset(tmp_path, NerfstudioDataParserConfig())


@pytest.mark.parametrize(
    ("fault", "off"),
    [
        (photos(lambda picture: picture), 0),
        (photos(lambda picture: picture.quantize(64)), 8),
        (photos(lambda picture: picture.convert("CMYK"), ".jpg"), 8),
        (photos(grey16), None),
        (photos(lambda picture: picture.convert("LA")), None),
        (photos(lambda picture: picture.convert("1")), None),
        (photos(lambda picture: picture.convert("RGBA"), every=2), 0),
    ],
)
def test_photos_are_read_as_what_they_show(
    fault: Fault, off: int | None, dataset: Path, changed: Callable[[Fault], Path]
) -> None:
    """Colours to what the file's own kind loses; of grey ones their grey."""
    folder = changed(fault)
    check_dataset(folder, NerfstudioDataParserConfig())
    read, original = split(folder), split(dataset)
    shapes = {read.get_numpy_image(index).shape for index in range(len(read))}
    assert len(shapes) == 1  # so that they can be stacked
    colours = read.get_numpy_image(0)[..., :3].astype(int)
    wanted = original.get_numpy_image(0).astype(int)
    if off is not None:
        assert np.abs(colours - wanted).mean() <= off
    else:
        grey = np.asarray(Image.fromarray(wanted.astype(np.uint8)).convert("L")).astype(float)
        assert abs(colours.mean() - grey.mean()) < 12
        assert np.corrcoef(colours[..., 0].ravel(), grey.ravel())[0, 1] > 0.4


def test_a_photo_is_turned_by_its_exif_where_only_that_fits(changed: Callable[[Fault], Path]) -> None:
    def fault(folder: Path, meta: Meta) -> None:
        meta["w"] = 24
        meta["cx"] -= 4
        exif = Image.Exif()
        exif[0x0112] = 6
        for frame in meta["frames"]:
            path = folder / frame["file_path"]
            upright = Image.open(path).convert("RGB").crop((4, 0, 28, 32))
            upright.save(folder / f"upright-{path.name}")
            upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)

    folder = changed(fault)
    check_dataset(folder, NerfstudioDataParserConfig())
    read = split(folder)
    upright = np.asarray(Image.open(folder / f"upright-{read.image_filenames[0].name}"))
    np.testing.assert_array_equal(read.get_numpy_image(0), upright)


def tinted(alpha: Image.Image) -> Image.Image:
    white = Image.new("LA", alpha.size, (255, 255))
    white.putalpha(alpha)
    return white


@pytest.mark.parametrize(
    "picture",
    [
        disc,
        lambda: disc(64),
        lambda: disc(16),
        lambda: disc().convert("1"),
        lambda: disc().convert("RGB"),
        lambda: disc().convert("LA"),
        lambda: disc().quantize(2),
        lambda: tinted(disc()),  # the mask is the alpha channel
        lambda: disc().point(lambda value: value > 0),
        lambda: Image.fromarray(np.asarray(disc()).astype(np.uint16) * 257),
    ],
)
def test_masks_of_any_mode_and_size(
    picture: Callable[[], Image.Image], changed: Callable[[Fault], Path]
) -> None:
    folder = changed(masks(picture))
    check_dataset(folder, NerfstudioDataParserConfig())
    mask = split(folder)[0]["mask"]
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask[..., 0].numpy(), np.asarray(disc()) > 0)


def reduced(size: int, half: int, copies: int = 12, masked: bool = False) -> Fault:
    def fault(folder: Path, meta: Meta) -> None:
        for key in ("fl_x", "fl_y", "cx", "cy"):
            meta[key] *= size / 32
        meta["w"] = meta["h"] = size
        (folder / "images_2").mkdir()
        for number, frame in enumerate(meta["frames"]):
            path = folder / frame["file_path"]
            picture = Image.open(path).convert("RGB").resize((size, size))
            picture.save(path)
            if number < copies:
                picture.resize((half, half)).save(folder / "images_2" / path.name)
            if masked:
                frame["mask_path"] = f"mask{number}.png"
                disc(size).save(folder / frame["mask_path"])

    return fault


def test_reduced_copies_are_looked_into(changed: Callable[[Fault], Path]) -> None:
    folder = changed(reduced(65, 33))  # rounded up, where the camera is rounded down
    halves = NerfstudioDataParserConfig(downscale_factor=2)
    check_dataset(folder, halves)
    assert split(folder, downscale_factor=2)[0]["image"].shape == (32, 32, 3)
    with pytest.raises(InputError, match="reduced by 4"):
        check_dataset(folder, NerfstudioDataParserConfig(downscale_factor=4))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (reduced(64, 32, copies=5), "7 of 12 images"),
        (reduced(64, 32, masked=True), "12 of 12 masks"),
        (reduced(64, 20), "20 x 20"),
    ],
)
def test_reduced_copies_that_are_not_whole(
    fault: Fault, words: str, changed: Callable[[Fault], Path]
) -> None:
    with pytest.raises(InputError, match=words):
        check_dataset(changed(fault), NerfstudioDataParserConfig(downscale_factor=2))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["sparse/0/cameras.bin"], "colmap --colmap-path sparse/0"),
        (["colmap/sparse/0/cameras.txt"], "colmap --colmap-path colmap/sparse/0"),
        (["sparse/0/cameras.bin", "poses_bounds.npy"], "colmap --colmap-path sparse/0"),
        (["poses_bounds.npy"], "ns-process-data images"),
        (["transforms_train.json"], "`blender-data`"),
        (["metadata.json", "EXR_RGBD/depth/0.exr"], "ns-process-data record3d"),
        ([], "ns-process-data"),
    ],
)
def test_other_formats_are_recognised(files: list[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError) as refused:
        check_dataset(tmp_path, NerfstudioDataParserConfig())
    assert words in refused.value.hint


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, True), (3600.0, False)])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_look_is_shown_on_a_terminal(
    seconds: float, shown: bool, terminal: bool, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    monkeypatch.setattr(captures, "CONSOLE", console)
    monkeypatch.setattr(captures, "BAR_AFTER", seconds)
    check_dataset(dataset, NerfstudioDataParserConfig())
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("Looking into 12 files" in printed) == (shown and terminal)
    assert printed == "" or terminal


def test_instant_ngp_without_its_word(changed: Callable[[Fault], Path]) -> None:
    def fault(folder: Path, meta: Meta) -> None:
        meta["camera_angle_x"] = 0.7
        del meta["cx"]

    with pytest.raises(InputError, match="instant-ngp-data"):
        check_dataset(changed(fault), NerfstudioDataParserConfig())


def test_a_scene_trains_on_palettes_with_coloured_masks(
    changed: Callable[[Fault], Path], tmp_path: Path
) -> None:
    def fault(folder: Path, meta: Meta) -> None:
        photos(lambda picture: picture.quantize(64))(folder, meta)
        masks(lambda: disc(64).convert("RGB"))(folder, meta)

    rays = {f"pipeline__datamanager__{split}_num_rays_per_batch": 64 for split in ("train", "eval")}
    config = make_config(
        "csd-nerfacto-tiny", tmp_path, changed(fault), max_num_iterations=2, timestamp="scene", **rays
    )
    pipeline = run(config).pipeline
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 3
