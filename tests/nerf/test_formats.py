"""Captures in other formats than nerfstudio's: `csd-nerf demo --data` opens them as they are."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from nerf_runs import run
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image
from scipy.spatial.transform import Rotation

from csd_nerf.demo.demo_command import Demo, defaults
from csd_nerf.demo.demo_settings import Sizes, open_folder
from csd_nerf.demo.stages import stages_of
from csd_nerf.errors import InputError
from csd_nerf.nerf.formats import format_of, read_split
from csd_nerf.nerf.methods import METHODS

SMALL = Sizes(
    picture_size=32,
    turntable_size=16,
    turntable_frames=2,
    train_arguments=("--pipeline.datamanager.train-num-rays-per-batch", "64"),
    edit_arguments=(
        *("--pipeline.render-size", "32", "--pipeline.picture-size", "32"),
        *("--pipeline.steps-per-picture", "2", "--pipeline.fits-per-round", "2"),
        *("--pipeline.datamanager.train-num-rays-per-batch", "64"),
    ),
)


def nerfstudio_s_own(still_life: Path, folder: Path) -> None:
    shutil.copytree(still_life, folder)


def colmap_model(ending: str, place: str, size: int = 32) -> Callable[[Path, Path], None]:
    """A model in `place`, beside `images`, of which one is in a folder of its own."""

    def make(still_life: Path, folder: Path) -> None:
        meta = json.loads((still_life / "transforms.json").read_text())
        (folder / place).mkdir(parents=True)
        focal, images = meta["fl_x"] * size / meta["w"], {}
        for number, frame in enumerate(meta["frames"], start=1):
            pose = np.array(frame["transform_matrix"])
            turn = (pose[:3, :3] * [1, -1, -1]).T  # world to camera, y down and z forward
            name = "more/photo.jpg" if number == 2 else f"{number}.jpg"
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            photo = Image.open(still_life / frame["file_path"]).resize((size, size * 3 // 4))
            photo.save(folder / "images" / name, quality=90)
            place_in_camera = -turn @ pose[:3, 3]
            images[number] = colmap.Image(
                number, colmap.rotmat2qvec(turn), place_in_camera, 1, name, np.zeros((1, 2)), np.array([-1])
            )
        lens = np.array([focal, focal * 3 / 4, size / 2, size * 3 / 8])
        cameras = {1: colmap.Camera(1, "PINHOLE", size, size * 3 // 4, lens)}
        points = {
            1: colmap.Point3D(1, np.zeros(3), np.full(3, 128), 0.5, np.array([1, 2]), np.array([0, 0])),
        }
        colmap.write_model(cameras, images, points, str(folder / place), ending)

    return make


def blender(still_life: Path, folder: Path) -> None:
    meta = json.loads((still_life / "transforms.json").read_text())
    angle = 2 * math.atan(meta["w"] / 2 / meta["fl_x"])
    for split, frames in (("train", meta["frames"][:8]), ("val", meta["frames"][8:10])):
        (folder / split).mkdir(parents=True)
        listed = []
        for number, frame in enumerate(frames):
            photo = Image.open(still_life / frame["file_path"]).convert("RGBA")
            photo.putpixel((0, 0), (0, 0, 0, 0))
            photo.save(folder / split / f"r_{number}.png")
            listed.append({**frame, "file_path": f"./{split}/r_{number}"})
        content = {"camera_angle_x": angle, "frames": listed}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
    shutil.copy(folder / "transforms_val.json", folder / "transforms_test.json")


def instant_ngp(still_life: Path, folder: Path) -> None:
    """Of twelve photos two are missing, so that a tenth of those there is one."""
    shutil.copytree(still_life, folder)
    meta = json.loads((folder / "transforms.json").read_text())
    meta["camera_angle_x"] = 2 * math.atan(meta["w"] / 2 / meta["fl_x"])
    meta["aabb_scale"] = 4
    for name in ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model"):
        del meta[name]
    for frame in meta["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    (folder / "transforms.json").write_text(json.dumps(meta))
    for number in (3, 7):
        (folder / "images" / f"{number:04d}.png").unlink()


def record3d(still_life: Path, folder: Path) -> None:
    """As the app exports it: a column-major lens, and poses of a quaternion and a place."""
    meta = json.loads((still_life / "transforms.json").read_text())
    (folder / "EXR_RGBD" / "rgb").mkdir(parents=True)
    poses = []
    for number, frame in enumerate(meta["frames"]):
        pose = np.array(frame["transform_matrix"])
        poses.append([*Rotation.from_matrix(pose[:3, :3]).as_quat(), *pose[:3, 3]])
        photo = Image.open(still_life / frame["file_path"])
        photo.save(folder / "EXR_RGBD" / "rgb" / f"{number}.jpg", quality=90)
    lens = [meta["fl_x"], 0, 0, 0, meta["fl_x"], 0, meta["w"] / 2, meta["h"] / 2, 1]
    content = {"w": meta["w"], "h": meta["h"], "K": lens, "poses": poses, "fps": 30}
    (folder / "EXR_RGBD" / "metadata.json").write_text(json.dumps(content))


CAPTURES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "nerfstudio": (nerfstudio_s_own, ""),
    "colmap-binary": (colmap_model(".bin", "sparse/0"), "colmap --colmap-path sparse/0"),
    "colmap-text": (colmap_model(".txt", "colmap/sparse/0"), "colmap --colmap-path colmap/sparse/0"),
    "phone": (
        colmap_model(".bin", "sparse/0", size=2016),
        "colmap --colmap-path sparse/0 --downscale-factor 1",
    ),
    "blender": (blender, "blender-data"),
    "instant-ngp": (instant_ngp, "instant-ngp-data"),
    "record3d": (record3d, ""),
}


@pytest.fixture(params=CAPTURES)
def capture(request: Any, dataset: Path, tmp_path: Path) -> tuple[Path, str]:
    """A folder, and the words that nerfstudio reads it by."""
    make, words = CAPTURES[request.param]
    make(dataset, tmp_path / "capture")
    return tmp_path / "capture", words


def run_here(command: list[str]) -> None:
    """What a command of the demo does, in this process."""
    if command[0] == "python":
        main = importlib.import_module(command[2]).main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            main()
        return
    methods = {name: METHODS[name] for name in ("csd-nerfacto-tiny", "csd-edit-tiny")}
    union = tyro.conf.FlagConversionOff[tyro.extras.subcommand_type_from_defaults(methods)]  # type: ignore[misc]
    config: Any = tyro.cli(tyro.conf.SuppressFixed[union], args=command[1:])
    config.pipeline.datamanager.data = config.data or config.pipeline.datamanager.data
    run(config)


def test_the_demo_trains_and_edits_it(
    capture: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data, words = capture
    output = tmp_path / "demo"
    demo = Demo(output, data, prompt="make it night", train_steps=2, edit_steps=2)
    settings = demo.check(SMALL)
    open_folder(output, settings, defaults())
    found = format_of(data)
    assert " ".join(found.words if found else ()) == words
    (train,) = (stage for stage in stages_of(output, settings) if stage.key == "train")
    assert shlex.join(train.command()).endswith(words)
    monkeypatch.chdir(output)
    for stage in stages_of(output, settings):
        run_here(stage.command())
        assert stage.finished()
    capsys.readouterr()
    demo.run(SMALL)
    assert "Failed" not in capsys.readouterr().out
    assert (output / "index.html").exists()


def cameras_by_photo(dataparser: Any) -> dict[str, torch.Tensor]:
    poses = {}
    for split in ("train", "val"):
        outputs = read_split(dataparser.setup(), split)
        poses |= {
            path.stem: pose
            for path, pose in zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True)
        }
    return poses


def test_the_only_evaluation_photo_of_instant_ngp_has_its_pose(dataset: Path, tmp_path: Path) -> None:
    instant_ngp(dataset, tmp_path / "capture")
    meta = json.loads((dataset / "transforms.json").read_text())
    found = format_of(tmp_path / "capture")
    assert found is not None
    read = cameras_by_photo(found.dataparser(tmp_path / "capture"))
    assert len(read) == 10
    for frame in meta["frames"]:
        if (name := Path(frame["file_path"]).stem) in read:
            pose = torch.tensor(frame["transform_matrix"])[:3]
            pose[:, 3] *= 0.3333
            torch.testing.assert_close(read[name], pose)


def spoil(name: str, content: bytes | None) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        for path in folder.rglob(name):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)

    return fault


def no_number(folder: Path) -> None:
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"][1]["transform_matrix"][0][3] = math.nan
    (folder / "transforms.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("make", "fault", "words"),
    [
        (CAPTURES["colmap-binary"][0], spoil("images.bin", b"\5"), "images.bin|unpack|cannot be read"),
        (CAPTURES["colmap-binary"][0], spoil("1.jpg", b""), "1.jpg"),
        (CAPTURES["colmap-text"][0], spoil("3.jpg", None), "3.jpg[\\s\\S]*[Nn]o such file"),
        (blender, spoil("transforms_val.json", None), "transforms_val.json"),
        (blender, spoil("r_1.png", None), "r_1.png[\\s\\S]*[Nn]o such file"),
        (instant_ngp, spoil("*[159].png", None), "too few frames"),
        (instant_ngp, spoil("*[1-9].png", None), "10 of 12 images"),
        (instant_ngp, no_number, "1 of 10 poses[\\s\\S]*0001.png"),
        (record3d, spoil("metadata.json", b"{}"), "export of Record3D[\\s\\S]*poses"),
        (record3d, spoil("[0-7].jpg", None), "too few photos"),
    ],
)
def test_a_faulty_one_is_refused_at_once(
    make: Callable[[Path, Path], None],
    fault: Callable[[Path], None],
    words: str,
    dataset: Path,
    tmp_path: Path,
) -> None:
    make(dataset, tmp_path / "capture")
    fault(tmp_path / "capture")
    with pytest.raises(InputError, match=words):
        Demo(tmp_path / "demo", tmp_path / "capture").check(SMALL)
