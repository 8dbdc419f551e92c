"""The route `gradient`, against the published gradient written out, and edits of before the loop."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from nerf_runs import run

from csd_nerf.distillation.objective import Objective
from csd_nerf.nerf.edit_pipeline import EditPipelineConfig
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.runs import find_run
from csd_nerf.seeds import step_seed

STEP = 5


def test_the_route_gradient_is_the_published_gradient(edit_config: Any) -> None:
    """Of CSD-Edit through encoder and renderer; here every pixel of both views is rendered in one graph."""
    pipeline = run(
        edit_config(
            max_num_iterations=1,
            pipeline__route="gradient",
            pipeline__gradient_share=1.0,
            pipeline__rays_per_chunk=300,  # several chunks, none of them whole rows
            pipeline__particles=2,
            pipeline__prior_precision="float32",
            pipeline__turntable_frames=0,
        )
    ).pipeline
    model, edit = pipeline.model.train(), pipeline._edit
    # The chunks draw the jitter of their samples in another order than whole views do.
    model.proposal_sampler.eval()
    parameters = dict(model.field.named_parameters())

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: value.grad for name, value in parameters.items() if value.grad is not None}

    draws = []
    gradient_of = Objective.gradient

    def watched(self: Objective, *args: Any, **question: Any) -> Any:
        draws.append(torch.get_rng_state())
        return gradient_of(self, *args, **question)

    edit.objective.gradient = watched.__get__(edit.objective)
    _, losses, _ = pipeline.get_train_loss_dict(STEP)
    of_the_route = gradients(losses["distillation"])

    torch.manual_seed(step_seed(edit.seed, STEP))
    indices = edit.sampler(STEP)
    assert len(set(indices)) == 2
    rays = [edit.cameras.generate_rays(camera_indices=index, keep_shape=True) for index in indices]
    views = torch.stack([model(view.flatten())["rgb"].view(32, 32, 3).permute(2, 0, 1) for view in rays])
    prior = edit.prior
    latents = prior.encode(views)
    photos = pipeline.datamanager.train_photos(indices, 32, 32)
    torch.set_rng_state(draws[0])  # the same timestep and noise
    with torch.no_grad():
        distilled = Objective(copy.deepcopy(pipeline.config.objective), prior).gradient(
            latents.detach(),
            prior.encode(photos),
            prior.condition(photos),
            prompt="make it night",
            source_prompt="",
            step=STEP,
            max_steps=edit.max_steps,
        )
    count, _, height, width = latents.shape
    (at_views,) = torch.autograd.grad(latents, views, distilled.gradient / (count * height * width))
    by_hand = gradients((views * at_views).sum())

    assert of_the_route.keys() == by_hand.keys() and len(by_hand) >= 4
    largest = max(float(value.abs().max()) for value in by_hand.values())
    assert largest > 0
    for name, value in by_hand.items():
        torch.testing.assert_close(of_the_route[name], value, rtol=1e-3, atol=1e-4 * largest, msg=name)


def test_an_edit_of_before_the_loop_opens_with_the_settings_that_came_since(
    scene_run: Path, tmp_path: Path
) -> None:
    """Its config.yml names the pipeline's class in another module, and says nothing of the loop."""
    config = copy.deepcopy(METHODS["csd-edit-tiny"])
    came_since = (
        "route", "edit", "fits_per_round", "kept_views", "descent", "sampling", "pixel_loss", "lpips_weight",
    )  # fmt: skip
    config.pipeline.particles = 6
    for name in came_since:
        del config.pipeline.__dict__[name]
    shutil.copytree(scene_run, tmp_path / "run")
    written = yaml.dump(config)
    named = written.replace("csd_nerf.nerf.edit_pipeline", "csd_nerf.nerf.pipeline")
    assert "csd_nerf.nerf.pipeline.EditPipelineConfig" in named and "edit_pipeline" not in named
    (tmp_path / "run" / "config.yml").write_text(named)

    opened: Any = find_run(tmp_path / "run").config
    assert isinstance(opened.pipeline, EditPipelineConfig)
    usual = EditPipelineConfig()
    for name in came_since:
        assert getattr(opened.pipeline, name) == getattr(usual, name), name
    assert opened.pipeline.particles == 6
    saved = {field.name for field in dataclasses.fields(opened.pipeline)} - {*came_since, "particles"}
    assert all(
        getattr(opened.pipeline, name) == getattr(METHODS["csd-edit-tiny"].pipeline, name) for name in saved
    )
