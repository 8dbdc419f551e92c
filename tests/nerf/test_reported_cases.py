"""Reported files and uses: each runs, or gets its one message. Scripts of the shared data make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, make_edit_config, refusal, run
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from csd_nerf.cli import main
from csd_nerf.errors import InputError
from csd_nerf.media.clips import read_clip

SCENES = {
    ("damaged_photo", "cut"): "damaged file",
    ("damaged_photo", "pointer"): "git lfs pull",
    ("damaged_photo", "empty"): "an empty file",
    ("masks", "rgb"): None,
    ("masks", "greyalpha"): None,
    ("masks", "large"): None,
    ("masks", "empty"): "all black",
    ("nan_pose",): "not finite",
    ("null_entries",): None,
    ("other_json", "depthpart"): "15 of 20 frames with one",
    ("other_json", "pose34"): None,
    ("other_json", "model"): None,
    ("other_json", "backslash"): None,
    ("other_json", "bom"): None,
    ("other_json", "noending"): None,
    ("other_json", "upper"): None,
    ("phone_photo_size", "504", "378"): None,
    ("phone_photo_size", "1296", "968"): None,
    ("phone_photo_size", "1241", "376"): None,
    ("photo_size_not_as_said", "double"): "multiply its fl_x",
    ("photo_size_not_as_said", "half"): "multiply its fl_x",
    ("photo_size_not_as_said", "swapped"): "exchange w and h",
    ("photo_size_not_as_said", "exif"): None,
    ("photos_of_other_kinds", "palette"): None,
    ("photos_of_other_kinds", "cmyk"): None,
    ("photos_of_other_kinds", "grey16"): None,
    ("photos_of_other_kinds", "greyalpha"): None,
    ("photos_of_other_kinds", "mixedalpha"): None,
    ("reduced_copies", "part"): "3 of 8 images",
    ("reduced_copies", "masks"): "8 of 8 masks",
    ("reduced_copies", "round"): None,
    ("tripod_or_one_photo",): "in one place",
}
"""What is made, with the arguments of its script, and the words that refuse it; None where it trains."""


def made(shared: Path, folder: Path, case: str, *arguments: str) -> Path:
    """Where a case's script has left its files."""
    cases = shared / "cases"
    if not (cases / case).is_dir():
        pytest.skip(f"the shared data has no {case}")
    shutil.copytree(cases / case, folder / case)
    shutil.copy(cases / "scene_base.py", folder)
    subprocess.run(
        [sys.executable, folder / case / "make.py", *arguments],
        env={**os.environ, "CSD_NERF_SHARED": str(shared)},
        check=True,
    )
    return folder / case


@pytest.mark.parametrize("case", SCENES, ids=" ".join)
def test_a_capture(case: tuple[str, ...], shared: Path, tmp_path: Path, capsys: Any) -> None:
    config = make_config(
        "csd-nerfacto-tiny",
        tmp_path,
        made(shared, tmp_path, *case) / "scene",
        max_num_iterations=2,
        pipeline__datamanager__train_num_rays_per_batch=64,
    )
    words = SCENES[case]
    if words is not None:
        assert words in refusal(config, capsys)
        return
    trainer = run(config)
    trainer.pipeline.eval()
    if not trainer.pipeline.datamanager.eval_dataset:  # of so few photos, none is kept back
        return
    metrics = trainer.pipeline.get_average_eval_image_metrics(step=1)
    assert 0 < metrics["psnr"] < 100


def test_no_evaluation_photos(shared: Path, tmp_path: Path) -> None:
    """An edit of such a scene is made; `ns-eval` has nothing to measure on and says so."""
    from nerfstudio.scripts.eval import ComputePSNR

    scene = run(
        make_config(
            "csd-nerfacto-tiny",
            tmp_path,
            made(shared, tmp_path, "no_evaluation_photos") / "scene",
            max_num_iterations=2,
            pipeline__datamanager__train_num_rays_per_batch=64,
            pipeline__datamanager__dataparser=NerfstudioDataParserConfig(train_split_fraction=1.0),
        )
    )
    edit = run(
        make_edit_config(
            "csd-edit-tiny", tmp_path, scene.base_dir, max_num_iterations=1, pipeline__particles=2
        )
    )
    for trainer in (scene, edit):
        with pytest.raises(InputError, match="no evaluation photos"):
            ComputePSNR(trainer.base_dir / "config.yml", tmp_path / "figures.json").main()


def edited(source: Path, output: Path, command: str = "image") -> None:
    size = ["--size", "64"] if command == "video" else []
    options = ["--prompt", "make it night", "--prior", "tiny-instruct", "--steps", "1", *size]
    main([command, str(source), *options, "-o", str(output)])


TIFFS = ("rgb16.tif", "grey8.tif", "cmyk.tif", "palette.tif", "lab.tif", "camera.jpg", "portrait.jpg")


def test_pictures(shared: Path, tmp_path: Path) -> None:
    """Of damaged EXIF, of long text, and to TIFF: what is written opens, at the size it was."""
    sources = {name: tmp_path / "bad_exif" / name for name in ("webui.png", "webui.webp")}
    sources |= {"text.png": tmp_path / "long_png_text" / "text.png"}
    sources |= {f"{name}.tif": tmp_path / "tiff_output" / name for name in TIFFS}
    for case in ("bad_exif", "long_png_text", "tiff_output"):
        made(shared, tmp_path, case)
    for name, source in sources.items():
        output = tmp_path / name.replace(".", "-") / f"edited-{name}"
        output.parent.mkdir()
        edited(source, output)
        with Image.open(output) as picture:
            picture.load()
            assert picture.size == ((96, 128) if "portrait" in name else (128, 96))


def test_clips(shared: Path, tmp_path: Path) -> None:
    """HDR is shown as SDR, pixels become square, and sound of any rate is kept."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg makes the clips of this case")
    folder = made(shared, tmp_path, "hdr_and_anamorphic_clips")
    looks = {}
    for name in ("pq.mp4", "hlg.mov", "sar.mp4", "sound192k.mov"):
        looks[name] = torch.stack(list(read_clip(folder / name)))
        edited(folder / name, tmp_path / f"{name}.mp4", "video")
        assert len(read_clip(tmp_path / f"{name}.mp4")) == len(looks[name])
    sdr = torch.stack(list(read_clip(shared / "data/video/wolf.mp4"))[:6])
    sdr = torch.nn.functional.interpolate(sdr, (128, 128), mode="area")
    for name in ("pq.mp4", "hlg.mov"):
        assert (looks[name][:6] - sdr).abs().mean() < 0.06
    height, width = looks["sar.mp4"].shape[-2:]
    assert width / height == pytest.approx(16 / 9, abs=0.04)
    assert read_clip(tmp_path / "sound192k.mov.mp4").audio
