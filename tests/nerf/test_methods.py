"""Every registered method: that nerfstudio finds it, and that the edits without InstructPix2Pix run."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from nerf_runs import refusal, run
from nerfstudio.configs import external_methods

from csd_nerf.distillation.objective import ObjectiveConfig
from csd_nerf.distillation.presets import preset
from csd_nerf.distillation.structure import StructureConfig
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.region import RegionConfig
from csd_nerf.priors.control import ControlConfig

TEXT_TO_IMAGE = {"dds-edit": "dds", "cds-edit": "cds", "pds-edit": "pds", "sds-edit": "sds"}


def test_nerfstudio_finds_every_method_and_one_line_about_it() -> None:
    found = {
        entry.name: entry.load()
        for entry in entry_points(group="nerfstudio.method_configs")
        if entry.value.startswith("csd_nerf.")
    }
    assert found.keys() == METHODS.keys()
    for name, method in found.items():
        assert method.config.method_name == name
        assert 20 < len(method.description) < 110 and method.description.endswith(".")


def test_nerfstudio_lists_other_methods_and_offers_to_install_one_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The list is made in a moment, without a look at the sources of those who ask for it."""
    with monkeypatch.context() as patch:
        patch.setattr(external_methods.inspect, "stack", None)
        listed, _ = external_methods.get_external_methods()
    other = listed["in2n"]
    assert len(listed) > 20 and other.method_name == "in2n"
    monkeypatch.setattr(external_methods.Confirm, "ask", lambda *_, **__: False)
    with pytest.raises(SystemExit) as end:
        dataclasses.replace(other)
    assert end.value.code == 0 and "pip install" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "published"), TEXT_TO_IMAGE.items())
def test_presets_edit_with_a_text_to_image_model_and_resume_exactly(
    method: str, published: str, edit_config: Any, text_to_image_folder: Path
) -> None:
    """With an untrained one: that the scene moves and an edit goes on, not where to."""
    settings = {
        "prompt": "a bear at night",
        "pipeline__source_prompt": "" if method == "sds-edit" else "a bear",
        "pipeline__prior": str(text_to_image_folder),
        "pipeline__steps_per_picture": 0,
        "pipeline__turntable_frames": 0,
        "pipeline__particles": 2,
        "pipeline__fits_per_round": 2,
        "pipeline__descent__steps": 2,
        "pipeline__datamanager__train_num_rays_per_batch": 512,
        "pipeline__render_size": 64,  # 4 x 4 at the coarsest map: patches of 2 find room
        "machine__device_type": "cpu",
        "max_num_iterations": 5,  # three rounds, and the edit goes on in the middle of the second
        "steps_per_save": 2,
        "save_only_latest_checkpoint": False,
    }
    assert METHODS[method].pipeline.objective == preset(published)
    whole = run(edit_config(method, **settings))
    pipeline = whole.pipeline
    edited = pipeline.eval_pictures()
    assert (edited - pipeline._edit.before).abs().max() > 1e-3
    _, losses, metrics = pipeline.get_train_loss_dict(6)
    assert losses["rgb_loss"].isfinite() and metrics["round"] == 3

    settings |= {"load_dir": whole.base_dir, "load_step": 2, "prompt": None, "timestamp": "resumed"}
    resumed = run(edit_config(method, **settings))
    assert resumed._start_step == 3
    torch.testing.assert_close(resumed.pipeline.eval_pictures(), edited, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["cds-edit", "pds-edit"])
def test_presets_go_the_way_of_the_published_gradient_as_well(
    method: str, edit_config: Any, text_to_image_folder: Path
) -> None:
    settings = {
        "prompt": "a bear at night",
        "pipeline__source_prompt": "a bear",
        "pipeline__prior": str(text_to_image_folder),
        "pipeline__route": "gradient",
        "pipeline__turntable_frames": 0,
        "pipeline__particles": 2,
        "pipeline__render_size": 64,
        "machine__device_type": "cpu",
        "max_num_iterations": 2,
    }
    pipeline = run(edit_config(method, **settings)).pipeline
    assert (pipeline.eval_pictures() - pipeline._edit.before).abs().max() > 1e-3
    _, losses, metrics = pipeline.get_train_loss_dict(2)
    assert losses["distillation"].isfinite() and ("structure_loss" in metrics) == (method == "cds-edit")


@pytest.mark.parametrize("method", ["dds-edit", "cds-edit", "pds-edit"])
def test_an_edit_by_two_descriptions_needs_the_source_s(method: str, edit_config: Any, capsys: Any) -> None:
    printed = refusal(edit_config(method, machine__device_type="cpu"), capsys)
    assert "--pipeline.source-prompt" in printed


def test_an_instruction_model_is_refused_where_descriptions_are_asked_for(
    edit_config: Any, capsys: Any
) -> None:
    changes = {"pipeline__prior": "tiny-instruct", "pipeline__source_prompt": "a bear"}
    printed = refusal(edit_config("dds-edit", machine__device_type="cpu", **changes), capsys)
    assert "text-to-image" in printed


def test_a_structure_loss_needs_a_prior_with_self_attention(
    edit_config: Any, text_to_image_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    from diffusers import UNet2DConditionModel

    folder = tmp_path / "convolutional"
    shutil.copytree(text_to_image_folder, folder, ignore=shutil.ignore_patterns("unet"))
    config = UNet2DConditionModel.load_config(text_to_image_folder / "unet")
    blocks = {"up_block_types": ["UpBlock2D"] * 3, "down_block_types": ["DownBlock2D"] * 3}
    UNet2DConditionModel.from_config({**config, **blocks}).save_pretrained(folder / "unet")
    changes = {"pipeline__prior": str(folder), "pipeline__source_prompt": "a bear"}
    printed = refusal(edit_config("cds-edit", machine__device_type="cpu", **changes), capsys)
    assert "self-attention" in printed and "structure loss none" in printed


EVERY_CHOICE = """
--pipeline.objective.residual pds --pipeline.objective.transport svgd --pipeline.objective.kernel imq
--pipeline.objective.bandwidth 3.5 --pipeline.objective.distance lpips
--pipeline.objective.normalize-kernel False --pipeline.objective.weighting uniform
--pipeline.objective.timesteps annealed --pipeline.objective.noise shared
--pipeline.objective.min-timestep 0.1 --pipeline.objective.max-timestep 0.9
--pipeline.objective.structure.layers 0 1 --pipeline.objective.structure.patch-sizes 1 2 4
--pipeline.objective.structure.num-patches 64 --pipeline.objective.structure.temperature 0.1
--pipeline.objective.structure.direction released --pipeline.objective.structure.weight 1.5
--pipeline.region.source box --pipeline.region.box-center 0 0.1 -0.2
--pipeline.region.box-size 1 2 3 --pipeline.region.box-rotation 0 0 0.5
--pipeline.control.net tiny-depth --pipeline.control.picture canny --pipeline.control.scale 0.5
--pipeline.source-prompt bear --pipeline.prior tiny-sd --pipeline.freeze-geometry True
"""


def test_every_choice_is_an_option_of_the_command_line() -> None:
    """Read as `ns-train cds-edit` reads them."""

    def read(words: list[str]) -> Any:
        usual = copy.deepcopy(METHODS["cds-edit"])
        form = tyro.conf.FlagConversionOff[tyro.conf.SuppressFixed[type(usual)]]
        return tyro.cli(form, default=usual, args=words).pipeline

    given = read(EVERY_CHOICE.split())
    assert given.objective == ObjectiveConfig(
        residual="pds", transport="svgd", kernel="imq", bandwidth=3.5, distance="lpips",
        normalize_kernel=False, weighting="uniform", timesteps="annealed", noise="shared",
        min_timestep=0.1, max_timestep=0.9,
        structure=StructureConfig(
            loss="cut", weight=1.5, layers=(0, 1), patch_sizes=(1, 2, 4), num_patches=64, temperature=0.1,
            direction="released",
        ),
    )  # fmt: skip
    assert given.region == RegionConfig("box", (0.0, 0.1, -0.2), (1.0, 2.0, 3.0), (0.0, 0.0, 0.5))
    assert given.control == ControlConfig("tiny-depth", "canny", 0.5)
    assert (given.source_prompt, given.freeze_geometry, given.prior) == ("bear", True, "tiny-sd")
    for bandwidth in ("median", "paper"):
        assert read(["--pipeline.objective.bandwidth", bandwidth]).objective.bandwidth == bandwidth
