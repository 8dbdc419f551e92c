"""Scenes edited with models of flow matching, by distillation and by sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nerf_runs import refusal, run
from prior_folders import save_flux2_klein, save_flux_kontext

from csd_nerf.comparison.budget import PER_VIEW
from csd_nerf.comparison.checking import _check_method
from csd_nerf.errors import InputError

Make = Any

SETTINGS: dict[str, Any] = {
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
    "pipeline__particles": 2,
    "machine__device_type": "cpu",
}


@pytest.mark.parametrize("method", ["csd-edit", "in2n-baseline"])
@pytest.mark.parametrize("save", [save_flux_kontext, save_flux2_klein])
def test_a_scene_is_edited(edit_config: Make, tmp_path: Path, save: Any, method: str) -> None:
    prior = str(save(tmp_path / "prior"))
    edited = run(edit_config(method, **SETTINGS, pipeline__prior=prior, max_num_iterations=2))
    edit = edited.pipeline._edit
    assert edit.prior.schedule.is_flow and edit.prior.unet_evaluations > 0
    assert (edited.pipeline.eval_pictures() - edit.before).abs().max() > 1e-3


def test_what_a_flow_cannot_answer_is_said_at_the_start(
    edit_config: Make, tmp_path: Path, capsys: Any
) -> None:
    prior = str(save_flux2_klein(tmp_path / "prior"))
    settings = {**SETTINGS, "pipeline__prior": prior, "pipeline__source_prompt": "a bear"}
    said = refusal(edit_config("pds-edit", **settings), capsys)
    assert "the residual pds cannot ask a model that takes instructions" in said
    said = refusal(edit_config("csd-edit", **settings, pipeline__render_size=36), capsys)
    assert "--pipeline.render-size" in said and "multiple of 8" in said
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"pipeline:\n  prior: {prior}\n")
    with pytest.raises(InputError, match="per-view cannot ask a model of flow matching"):
        _check_method(PER_VIEW, str(recipe), (), (), "")
