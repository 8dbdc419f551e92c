"""Runs from beginning to end at the smallest sizes: for any method, device, precision and implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from nerf_runs import make_config, make_edit_config, run
from nerfstudio.utils.eval_utils import eval_setup

from csd_nerf.nerf.cost import read_cost
from csd_nerf.nerf.edited_run import open_edited_run
from csd_nerf.nerf.evaluate_run import EvaluationSettings, evaluate
from csd_nerf.nerf.runs import find_run

Implementation = Literal["tcnn", "torch"]
EVERYWHERE = {
    "pipeline__region__source": "box",
    "pipeline__region__box_center": (0.0, 0.0, 0.0),
    "pipeline__region__box_size": (20.0, 20.0, 20.0),
}
EDITS: dict[str, dict[str, Any]] = {
    "csd-edit": {},
    "csd-edit, published gradient": {"pipeline__route": "gradient", "pipeline__gradient_share": 0.5},
    "csd-edit, region and frozen geometry": {"pipeline__freeze_geometry": True, **EVERYWHERE},
    "dds-edit": {"pipeline__source_prompt": "a photo"},
    "cds-edit": {
        "pipeline__source_prompt": "a photo",
        "pipeline__objective__structure__patch_sizes": (1,),  # its maps are small
    },
    "pds-edit": {"pipeline__source_prompt": "a photo"},
    "sds-edit": {},
    "csd-edit-dataset": {},
    "in2n-baseline": {"pipeline__sampling__steps": 2, "pipeline__lpips_weight": 0.0},  # no AlexNet here
    "refit-baseline": {"pipeline__sampling__steps": 2},
}
"""What each is told beyond its defaults, by its name and a word on it."""
ASKED_BY_DESCRIPTION = ("dds-edit", "cds-edit", "pds-edit", "sds-edit")


def on(device: str, implementation: Implementation) -> dict[str, Any]:
    """Options of a small field in half precision."""
    return {
        "machine__device_type": device,
        "mixed_precision": True,
        "pipeline__model__implementation": implementation,
        "pipeline__model__average_init_density": 1.0,  # fog, in which a region shows
        "pipeline__model__num_levels": 3,
        "pipeline__model__log2_hashmap_size": 8,
        "pipeline__model__hidden_dim": 16,
        "pipeline__model__hidden_dim_color": 16,
        "pipeline__model__num_proposal_iterations": 1,
        "pipeline__model__num_proposal_samples_per_ray": (16,),
        "pipeline__model__num_nerf_samples_per_ray": 12,
        "pipeline__model__proposal_net_args_list": [
            {"hidden_dim": 16, "log2_hashmap_size": 8, "num_levels": 3, "max_res": 32, "use_linear": False}
        ],
    }


def scene_of_three_steps(folder: Path, dataset: Path, device: str, implementation: Implementation) -> Path:
    """The run folder of a scene whose poses are trained too."""
    config = make_config(
        "csd-nerfacto",
        folder,
        dataset,
        max_num_iterations=3,
        timestamp="scene",
        pipeline__datamanager__train_num_rays_per_batch=128,
        **on(device, implementation),
    )
    trainer = run(config)
    _check_steps(trainer, implementation)
    saved: Any = find_run(trainer.base_dir).config
    assert saved.pipeline.model.implementation == implementation
    return trainer.base_dir


def check_edit(
    name: str, folder: Path, scene: Path, device: str, implementation: Implementation, **more: Any
) -> None:
    """Three steps of an edit, one after a resume, its evaluation, and opening it as ns-render does."""
    method = name.split(",")[0]
    sampled = method in ("in2n-baseline", "refit-baseline")
    settings = {
        "pipeline__prior": "tiny-sd" if method in ASKED_BY_DESCRIPTION else "tiny-instruct",
        "pipeline__steps_per_picture": 0,
        "pipeline__datamanager__train_num_rays_per_batch": 128,
        **({} if method == "refit-baseline" else {"pipeline__fits_per_round": 2}),
        **({} if sampled else {"pipeline__particles": 2, "pipeline__descent__steps": 1}),
        **on(device, implementation),
        **EDITS[name],
        **more,
    }
    begun = run(make_edit_config(method, folder, scene, max_num_iterations=3, **settings))
    _check_steps(begun, implementation)
    settings |= {"load_dir": begun.base_dir, "timestamp": "resumed"}
    resumed = run(make_edit_config(method, folder, scene, max_num_iterations=4, **settings))
    assert resumed._start_step == 3
    _check_steps(resumed, implementation)
    cost = read_cost(resumed.base_dir)
    assert cost is not None and cost.steps == 4 and cost.peak_memory_mib

    opened = open_edited_run(resumed.base_dir)
    assert opened.pipeline.model.config.implementation == implementation
    evaluation = evaluate(opened, EvaluationSettings(views=1), say=lambda _: None)
    assert {figure.name for figure in evaluation.figures.measured} >= {"change"}
    _opens_as_left(resumed)


def check_generation(folder: Path, device: str, implementation: Implementation) -> None:
    """Three steps of text-to-3D, one after a resume, and opening it as ns-render does."""
    settings = {
        "prompt": "a red ball",
        "pipeline__prior": "tiny-sd",
        "pipeline__name_sides": False,
        "pipeline__particles": 2,
        "pipeline__render_size": 16,
        "pipeline__fine_render_size": 24,
        "pipeline__prior_size": 32,
        "pipeline__picture_size": 32,
        "pipeline__picture_views": 2,
        "pipeline__turntable_frames": 2,
        **on(device, implementation),
    }
    begun = run(
        make_config("csd-generate", folder, None, max_num_iterations=3, timestamp="begun", **settings)
    )
    _check_steps(begun, implementation)
    settings |= {"load_dir": begun.base_dir, "timestamp": "resumed"}
    resumed = run(make_config("csd-generate", folder, None, max_num_iterations=4, **settings))
    assert resumed._start_step == 3
    _check_steps(resumed, implementation)
    _opens_as_left(resumed)


def _check_steps(trainer: Any, implementation: Implementation) -> None:
    """They were in half precision, and reached the optimisers; the first may be too large, not all."""
    assert trainer.mixed_precision and trainer.grad_scaler.is_enabled()
    assert trainer.pipeline.model.config.implementation == implementation
    optimizers = trainer.optimizers.optimizers.values()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    assert any(state["exp_avg"].any() for state in states)
    assert all(value.isfinite().all() for value in trainer.pipeline.model.parameters())


def _opens_as_left(trainer: Any) -> None:
    """By nerfstudio's own way of opening a scene, to the same pictures."""
    _, pipeline, _, step = eval_setup(trainer.base_dir / "config.yml")
    assert step == 3
    torch.testing.assert_close(pipeline.eval_pictures(), trainer.pipeline.eval_pictures(), atol=0.02, rtol=0)
