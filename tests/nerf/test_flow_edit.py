"""Scenes edited with models of flow matching, by distillation and by sampling."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run
from prior_folders import save_flux2_klein, save_flux_kontext, save_qwen_image_edit

from csd_nerf.comparison.budget import PER_VIEW
from csd_nerf.comparison.checking import _check_method
from csd_nerf.distillation import Guidance, flow_edit, svgd
from csd_nerf.errors import InputError
from csd_nerf.nerf.edits import RoundViews, follow_flow

Make = Any

SETTINGS: dict[str, Any] = {
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 0,
    "pipeline__particles": 2,
    "machine__device_type": "cpu",
}


@pytest.mark.parametrize(
    ("save", "method"),
    [
        *itertools.product([save_flux_kontext, save_flux2_klein], ["csd-edit", "in2n-baseline"]),
        (save_qwen_image_edit, "csd-edit"),
    ],
)
def test_a_scene_is_edited(edit_config: Make, tmp_path: Path, save: Any, method: str) -> None:
    prior = str(save(tmp_path / "prior"))
    edited = run(edit_config(method, **SETTINGS, pipeline__prior=prior, max_num_iterations=2))
    edit = edited.pipeline._edit
    assert edit.prior.schedule.is_flow and edit.prior.unet_evaluations > 0
    assert (edited.pipeline.eval_pictures() - edit.before).abs().max() > 1e-3


def test_the_recipe_for_flows_anneals_over_the_edit(edit_config: Make, tmp_path: Path) -> None:
    settings = {**SETTINGS, "recipe": "flow", "pipeline__prior": str(save_flux2_klein(tmp_path / "prior"))}
    edited = run(edit_config("csd-edit", **settings, max_num_iterations=2))
    config = edited.pipeline.config.objective
    assert (config.timesteps, config.weighting) == ("annealed", "one-over-alpha")
    edit = edited.pipeline._edit
    assert (edited.pipeline.eval_pictures() - edit.before).abs().max() > 1e-4


def test_a_text_encoder_that_sees_the_views_is_loaded_once(
    edit_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csd_nerf.priors.parts import load_text_models

    loads: list[Any] = []

    def counted(*options: Any) -> Any:
        loads.append(options)
        return load_text_models(*options)

    monkeypatch.setattr("csd_nerf.priors.flow_loading.load_text_models", counted)
    prior = str(save_qwen_image_edit(tmp_path / "prior"))
    run(edit_config("csd-edit", **SETTINGS, pipeline__prior=prior, max_num_iterations=4))
    assert len(loads) == 1


def test_views_go_along_the_flow_together(edit_config: Make, tmp_path: Path) -> None:
    """As `flow_edit` does with SVGD; the decoded change is added to the views."""
    settings = {**SETTINGS, "pipeline__prior": str(save_flux2_klein(tmp_path / "prior"))}
    settings |= {"pipeline__edit": "flow-edit", "pipeline__sampling__steps": 3, "max_num_iterations": 2}
    edited = run(edit_config("csd-edit", **settings))
    edit = edited.pipeline._edit
    assert (edited.pipeline.eval_pictures() - edit.before).abs().max() > 1e-3

    prior, config = edit.prior, edited.pipeline.config
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    source, condition = prior.encode_source(images)
    views = RoundViews(
        images, source, condition, "make it night", Guidance(3.0), 0, 1, torch.Generator().manual_seed(1)
    )
    got = follow_flow(config, prior)(views)
    generator = torch.Generator().manual_seed(1)
    start = config.sampling.start.sample(1000, generator=generator)
    options: Any = {"prompt": "make it night", "guidance": Guidance(3.0), "start": start, "steps": 3}
    sharing = config.objective
    kernel: Any = {"kernel": sharing.kernel, "normalize": sharing.normalize_kernel}
    transport = partial(svgd, bandwidth=sharing.bandwidth, **kernel)
    end = flow_edit(prior, source, source, condition, transport=transport, generator=generator, **options)
    torch.testing.assert_close(got, images + prior.decode(end) - prior.decode(source), rtol=0, atol=1e-4)
    config.objective.transport = "independent"
    views = replace(views, generator=torch.Generator().manual_seed(1))
    assert (follow_flow(config, prior)(views) - got).abs().max() > 1e-3


def test_what_flow_edit_cannot_do_is_said_at_the_start(edit_config: Make, capsys: Any) -> None:
    settings = {**SETTINGS, "pipeline__edit": "flow-edit", "recipe": "tiny"}
    assert "FlowEdit cannot ask this prior" in refusal(edit_config("csd-edit", **settings), capsys)
    settings["pipeline__objective__distance"] = "colours"
    assert "--pipeline.objective.distance" in refusal(edit_config("csd-edit", **settings), capsys)


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
