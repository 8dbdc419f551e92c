"""Every registered method: that nerfstudio finds it, and that the edits without InstructPix2Pix run."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from nerf_runs import run

from csd_nerf.distillation.presets import preset
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.runs import find_run

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


@pytest.mark.parametrize(("method", "published"), TEXT_TO_IMAGE.items())
def test_presets_edit_with_a_text_to_image_model(
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
        "pipeline__render_size": 64,  # 4 x 4 at the coarsest map: patches of 2 find room
        "machine__device_type": "cpu",
    }
    assert METHODS[method].pipeline.objective == preset(published)
    edited = run(edit_config(method, **settings, max_num_iterations=2))
    pipeline = edited.pipeline
    assert (pipeline.eval_pictures() - pipeline._edit.before).abs().max() > 1e-3
    _, losses, metrics = pipeline.get_train_loss_dict(2)
    assert losses["distillation"].isfinite() and ("structure_loss" in metrics) == (method == "cds-edit")

    again = {**settings, "load_dir": edited.base_dir, "prompt": None, "max_num_iterations": 3}
    assert find_run(run(edit_config(method, **again)).base_dir).checkpoint.name == "step-000000002.ckpt"


@pytest.mark.parametrize("method", ["dds-edit", "cds-edit", "pds-edit"])
def test_an_edit_by_two_descriptions_needs_the_source_s(method: str, edit_config: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        run(edit_config(method, machine__device_type="cpu"))
    assert stop.value.code == 2
    assert "--pipeline.source-prompt" in capsys.readouterr().err


def test_an_instruction_model_is_refused_where_descriptions_are_asked_for(
    edit_config: Any, capsys: Any
) -> None:
    changes = {"pipeline__prior": "tiny-instruct", "pipeline__source_prompt": "a bear"}
    with pytest.raises(SystemExit) as stop:
        run(edit_config("dds-edit", machine__device_type="cpu", **changes))
    assert stop.value.code == 2
    assert "text-to-image" in capsys.readouterr().err
