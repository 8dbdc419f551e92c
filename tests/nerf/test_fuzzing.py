"""What nobody has thought of: files made by chance are used or refused in words, in bounded time."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from csd_nerf.errors import InputError
from csd_nerf.media import read_picture
from csd_nerf.nerf.captures import check_dataset
from csd_nerf.nerf.config_loader import read_config
from csd_nerf.nerf.methods import METHODS
from csd_nerf.settings_files import apply_recipe

bounded = settings(
    max_examples=100,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@pytest.fixture
def capture(dataset: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with photos, and what its transforms.json says."""
    (tmp_path / "images").symlink_to(dataset / "images")
    return tmp_path, json.loads((dataset / "transforms.json").read_text())


ENTRIES = ("frames", "fl_x", "w", "h", "k1", "camera_model", "train_filenames", "val_filenames")
OF_A_FRAME = ("file_path", "transform_matrix", "mask_path", "depth_file_path", "w", "fl_x")


@given(data=st.data())
@bounded
def test_transforms(capture: tuple[Path, dict[str, Any]], data: st.DataObject) -> None:
    folder, right = capture
    meta = json.loads(json.dumps(right))
    if data.draw(st.booleans()):
        meta[data.draw(st.sampled_from(ENTRIES))] = data.draw(anything)
    frames = meta["frames"]
    if isinstance(frames, list) and frames and isinstance(frames[0], dict):
        frames[0][data.draw(st.sampled_from(OF_A_FRAME))] = data.draw(anything)
    (folder / "transforms.json").write_text(json.dumps(meta))
    with contextlib.suppress(InputError):
        check_dataset(folder, NerfstudioDataParserConfig())


@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
@bounded
def test_transforms_of_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "transforms.json").write_bytes(content)
    with pytest.raises(InputError):
        check_dataset(tmp_path, NerfstudioDataParserConfig())


TAGS = (
    "!!python/object/apply:os.system",
    "!!python/object/new:subprocess.Popen",
    "!!python/object/apply:builtins.eval",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:nerfstudio.engine.trainer.TrainerConfig",
    "!!python/object:csd_nerf.nerf.trainer.EditTrainerConfig",
    "!!python/object/apply:csd_nerf.files.remove",
    "!!python/object/apply:pathlib.PosixPath",
    "!!python/tuple",
)


@given(tag=st.sampled_from(TAGS), value=anything)
@bounded
def test_config_yml(tmp_path: Path, tag: str, value: Any) -> None:
    """Nothing is carried out: what the tags would do is to make or remove a file."""
    (tmp_path / "kept").touch()
    dumped = yaml.safe_dump(
        [value, f"touch {tmp_path / 'made'}", str(tmp_path / "kept")], default_flow_style=True
    )
    file = tmp_path / "config.yml"
    file.write_text(f"{tag} {dumped}", encoding="utf8")
    with contextlib.suppress(InputError):
        read_config(file)
    assert not (tmp_path / "made").exists() and (tmp_path / "kept").exists()


@given(st.binary(max_size=100) | anything.map(lambda value: yaml.safe_dump(value).encode()))
@bounded
def test_config_yml_and_recipes_of_anything(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        read_config(file)
    usual = METHODS["csd-edit"]
    with contextlib.suppress(InputError):
        apply_recipe(copy.deepcopy(usual), usual, "csd-edit", str(file), set())


def _pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    made = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((16, 24)).convert("RGB").save(buffer, kind, exif=exif)
        made[kind] = buffer.getvalue()
    return made


@given(
    picture=st.sampled_from(sorted(_pictures().items())),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    kept=st.floats(0.1, 1) | st.just(1.0),
)
@settings(bounded, max_examples=400)
def test_headers_of_pictures(
    tmp_path: Path, picture: tuple[str, bytes], places: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(picture[1])
    for place, value in places:
        content[int(place * min(len(content), 400))] = value
    file = tmp_path / f"picture-{os.getpid()}.png"
    file.write_bytes(content[: int(len(content) * kept)])
    with contextlib.suppress(InputError):
        read_picture(file)
