from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerf_runs import make_edit_config, run

from csd_nerf.distillation.objective import ObjectiveConfig
from csd_nerf.errors import InputError
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.runs import adopt, find_run, read_checkpoint


def test_a_run_is_found_by_its_folder_its_config_its_checkpoints_or_one_of_them(scene_run: Path) -> None:
    checkpoint = scene_run / "nerfstudio_models" / "step-000000059.ckpt"
    for path in (scene_run, scene_run / "config.yml", checkpoint.parent, checkpoint):
        run = find_run(path)
        assert run.checkpoint == checkpoint
        assert run.config is not None and run.config.method_name == "csd-nerfacto-tiny"


def test_the_newest_whole_checkpoint_is_taken(scene_run: Path, tmp_path: Path) -> None:
    whole = scene_run / "nerfstudio_models" / "step-000000059.ckpt"
    for step in (5, 1000, 20000):
        shutil.copy(whole, tmp_path / f"step-{step:09d}.ckpt")
    (tmp_path / "step-000030000.ckpt").write_bytes(whole.read_bytes()[:1000])  # cut short by a kill
    assert find_run(tmp_path).checkpoint.name == "step-000020000.ckpt"
    assert find_run(tmp_path, step=5).checkpoint.name == "step-000000005.ckpt"
    assert find_run(tmp_path).config is None


def test_a_missing_run_or_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_run(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no checkpoint[\s\S]*got: +notes.txt"):
        find_run(tmp_path)


def test_a_run_of_an_earlier_version_has_the_defaults_of_what_came_since(
    scene_run: Path, tmp_path: Path
) -> None:
    config = copy.deepcopy(METHODS["csd-edit-tiny"])
    del config.pipeline.region, config.pipeline.objective.text_guidance
    shutil.copytree(scene_run, tmp_path / "run")
    (tmp_path / "run" / "config.yml").write_text(yaml.dump(config))
    opened: Any = find_run(tmp_path / "run").config
    assert opened.pipeline.region == METHODS["csd-edit-tiny"].pipeline.region
    assert opened.pipeline.objective.text_guidance == ObjectiveConfig.text_guidance


def test_a_scene_of_an_earlier_version_is_opened(scene_run: Path, tmp_path: Path) -> None:
    """Its trainer was in another module then."""
    shutil.copytree(scene_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yml"
    named = config.read_text().replace("csd_nerf.nerf.scene_trainer", "csd_nerf.nerf.trainer")
    assert named != config.read_text()
    config.write_text(named)
    assert find_run(tmp_path / "run").config == find_run(scene_run).config


@dataclass
class Inner:
    size: int = 1
    depth: int = 2


@dataclass
class Outer:
    name: str = "default"
    inner: Inner = field(default_factory=Inner)


def test_what_the_user_set_wins_and_the_rest_follows_the_run() -> None:
    given = Outer(inner=Inner(size=5))
    saved = Outer(name="saved", inner=Inner(size=7, depth=8))
    assert adopt(given, Outer(), saved) == Outer(name="saved", inner=Inner(size=5, depth=8))


def test_an_option_counts_as_given_also_with_its_default() -> None:
    saved = Outer(name="saved", inner=Inner(size=7, depth=8))
    adopted = adopt(Outer(), Outer(), saved, {"pipeline.inner.size"}, "pipeline.")
    assert adopted == Outer(name="saved", inner=Inner(size=1, depth=8))


def test_a_continued_edit_takes_what_was_said_and_keeps_the_rest(
    scene_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {"pipeline__picture_views": 3, "pipeline__unet_batch_size": 7, "machine__seed": 7}
    edit = run(make_edit_config("csd-edit-tiny", tmp_path, scene_run, max_num_iterations=1, **begun))
    config = copy.deepcopy(METHODS["csd-edit-tiny"])
    config.load_dir = edit.base_dir
    usual = (config.pipeline.picture_views, config.machine.seed)
    said = f"--pipeline.picture-views {usual[0]} --machine.seed {usual[1]}"
    monkeypatch.setattr(sys, "argv", ["ns-train", "csd-edit-tiny", *said.split()])
    config.check()
    assert (config.pipeline.picture_views, config.machine.seed) == usual
    assert config.pipeline.unet_batch_size == 7


def as_numpy_2_writes_it(checkpoint: Path, copy: Path) -> Path:
    """The same with another name for numpy's scalars."""
    with zipfile.ZipFile(checkpoint) as whole, zipfile.ZipFile(copy, "w") as written:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("/data.pkl"):
                assert b"cnumpy.core.multiarray\nscalar\n" in content
                content = content.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
            written.writestr(name, content)
    return copy


def test_a_checkpoint_that_was_written_under_numpy_2_is_read(scene_run: Path, tmp_path: Path) -> None:
    """In a process of its own, in which the methods are not imported first."""
    checkpoint = find_run(scene_run).checkpoint
    copy = as_numpy_2_writes_it(checkpoint, tmp_path / "step-000000059.ckpt")
    code = f"from csd_nerf.nerf.runs import *; read_checkpoint(Path({str(copy)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    (rate,) = read_checkpoint(copy)["schedulers"]["fields"]["_last_lr"]
    assert rate == read_checkpoint(checkpoint)["schedulers"]["fields"]["_last_lr"][0]


def test_what_torch_says_of_a_checkpoint_is_passed_on_without_its_colours(tmp_path: Path) -> None:
    file = tmp_path / "step-000000001.ckpt"
    torch.save({"pipeline": Path("code"), "step": 1}, file)
    with pytest.raises(InputError) as refused:
        read_checkpoint(file)
    assert "Weights only" in refused.value.got and "\x1b" not in refused.value.got
