"""Photos of all sizes, reduced on reading: pictures and cameras agree to the pixel."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerf_runs import make_config, run
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from PIL import Image

from csd_nerf.cameras import fit_cameras, fit_photo, view_size
from csd_nerf.media import picture_files
from csd_nerf.nerf.datamanager import reduction
from csd_nerf.nerf.photos import PhotoDataset

Size = tuple[int, int]


@pytest.mark.parametrize("photo_size", [32, 64, 128, 512])
def test_photo_and_camera_are_reduced_to_one_size(photo_size: int) -> None:
    """All short sides up to 4096; long sides of usual shapes, and of strips as long as a JPEG can be."""
    short = torch.arange(photo_size + 1, 4097)
    factors = [reduction(side, photo_size) for side in short.tolist()]
    shapes = [(short * ratio).long() for ratio in (1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2, 2.35)]
    longest = torch.maximum(4096 * short / photo_size, torch.tensor(2**23 / photo_size)).clamp(max=65535)
    shapes += [(short + (longest - short) * torch.rand(len(short))).long() for _ in range(20)]
    shapes += [longest.long()]
    for long in shapes:
        # As nerfstudio's Cameras.rescale_output_resolution does it for one factor, here for one a camera.
        cameras = Cameras(torch.eye(4)[:3].expand(len(short), 3, 4), 1.0, 1.0, 1.0, 1.0, long, short)
        cameras.rescale_output_resolution(torch.tensor(factors))
        # And as its InputDataset does it for photos and masks.
        photos = [
            (int(width * factor), int(height * factor))
            for width, height, factor in zip(long.tolist(), short.tolist(), factors, strict=True)
        ]
        assert torch.cat([cameras.width, cameras.height], dim=1).tolist() == [list(size) for size in photos]
        assert {height for _, height in photos} == {photo_size}


shorts = st.integers(129, 4096)
ratios = st.floats(1, 1.5)


def camera(size: Size) -> Cameras:
    """Of a photo (width, height), one that looks straight ahead."""
    width, height = size
    return Cameras(torch.eye(4)[None, :3], 1.2 * width, 1.1 * width, width / 2, height / 2, width, height)


@given(short=shorts, ratio=ratios, upright=st.booleans(), photo_size=st.sampled_from([32, 64, 96, 128, 256]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_photo_that_is_read_is_as_large_as_its_camera(
    short: int, ratio: float, upright: bool, photo_size: int
) -> None:
    size = (short, int(short * ratio)) if upright else (int(short * ratio), short)
    factor = reduction(short, photo_size)
    dataset = PhotoDataset(DataparserOutputs([Path("photo.png")], camera(size)), scale_factor=factor)
    cameras = dataset.cameras
    width, height = int(cameras.width[0]), int(cameras.height[0])
    # As nerfstudio reduces photos and masks.
    assert (width, height) == tuple(int(side * factor) for side in size)
    assert min(width, height) == min(short, photo_size)
    if short > 400:  # larger ones take long to read
        return
    photo = Image.new("L", size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_files, "opened", lambda *_: contextlib.nullcontext(photo))
        read = dataset.get_numpy_image(0)
    assert read.shape[:2] == (height, width)


@given(short=shorts, ratio=ratios, upright=st.booleans(), view=st.sampled_from([32, 96, 256]))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_a_view_s_photo_shows_what_its_camera_sees(
    short: int, ratio: float, upright: bool, view: int
) -> None:
    """To a pixel of the photo, of which each has its own place as its colour."""
    width, height = (short, int(short * ratio)) if upright else (int(short * ratio), short)
    whole = camera((width, height))
    rows, columns = view_size(whole, view, 8)
    fitted = fit_cameras(whole, rows, columns)
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    seen = fit_photo(torch.stack([across, down], -1), rows, columns)
    assert seen.shape[-2:] == (int(fitted.height), int(fitted.width))
    for row in (rows // 4, rows // 2):
        for column in (columns // 3, columns - columns // 4):
            ray_x = (column + 0.5 - fitted.cx) / fitted.fx
            ray_y = (row + 0.5 - fitted.cy) / fitted.fy
            x, y = seen[:, row, column].tolist()
            assert abs(float(ray_x * whole.fx + whole.cx) - x * width) < 1
            assert abs(float(ray_y * whole.fy + whole.cy) - y * height) < 1


def test_small_photos_are_left_alone_and_halves_are_halves() -> None:
    assert reduction(100, 128) == reduction(128, 128) == 1.0
    assert reduction(512, 128) == 0.25


def resized(dataset: Path, folder: Path, sizes: list[Size]) -> Path:
    """A copy of a dataset whose photos have these sizes (width, height) in turn.

    Photos of one size have masks, all white: nerfstudio samples none of several sizes.
    """
    shutil.copytree(dataset, folder)
    meta = json.loads((folder / "transforms.json").read_text())
    for number, frame in enumerate(meta["frames"]):
        width, height = sizes[number % len(sizes)]
        photo = folder / frame["file_path"]
        Image.open(photo).resize((width, height)).save(photo)
        if len(sizes) == 1:
            frame["mask_path"] = f"mask-{photo.name}"
            Image.new("L", (width, height), 255).save(folder / frame["mask_path"])
        across, down = width / meta["w"], height / meta["h"]
        frame |= {"w": width, "h": height, "cx": across * meta["cx"], "cy": down * meta["cy"]}
        frame |= {"fl_x": across * meta["fl_x"], "fl_y": down * meta["fl_y"]}
    lens = ("w", "h", "cx", "cy", "fl_x", "fl_y")
    shared = {name: value for name, value in meta.items() if name not in lens}
    (folder / "transforms.json").write_text(json.dumps(shared))
    return folder


@pytest.mark.parametrize(
    "sizes",
    [
        [(504, 378)],  # a telephone's 4032 x 3024, reduced by eight
        [(161, 161)],
        [(504, 378), (378, 504), (248, 161)],
    ],
)
def test_a_scene_trains_and_is_measured_on_photos_of_any_size(
    dataset: Path, tmp_path: Path, sizes: list[Size]
) -> None:
    data = resized(dataset, tmp_path / "data", sizes)
    rays = {f"pipeline__datamanager__{split}_num_rays_per_batch": 512 for split in ("train", "eval")}
    pipeline = run(
        make_config("csd-nerfacto-tiny", tmp_path, data, max_num_iterations=2, timestamp="scene", **rays)
    ).pipeline
    manager = pipeline.datamanager
    for split in (manager.train_dataset, manager.eval_dataset):
        cameras = split.cameras
        for index in range(len(split)):
            size = int(cameras.height[index]), int(cameras.width[index])
            shapes = {
                tuple(split[index][kind].shape[:2]) for kind in ("image", "mask") if kind in split[index]
            }
            assert shapes == {size}
        assert min(int(cameras.height.min()), int(cameras.width.min())) >= 128
    assert pipeline.get_average_eval_image_metrics()["psnr"] > 3  # as `ns-eval` does
