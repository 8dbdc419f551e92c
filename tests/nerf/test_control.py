"""An edit that keeps to the depth or the edges of the source, by a ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed

from csd_nerf.nerf.rendering import render_still
from csd_nerf.priors.control_net import ControlNet
from csd_nerf.priors.control_pictures import canny_picture, depth_picture

Make = Any


@pytest.fixture
def settings(text_to_image_folder: Path, control_net_folder: Path) -> dict[str, Any]:
    return {
        "prompt": "a bear at night",
        "pipeline__source_prompt": "a bear",
        "pipeline__prior": str(text_to_image_folder),
        "pipeline__control__net": str(control_net_folder),
        "pipeline__control__picture": "depth",
        "pipeline__steps_per_picture": 0,
        "pipeline__turntable_frames": 0,
        "pipeline__particles": 2,
        "machine__device_type": "cpu",
    }


def weights(pipeline: Any) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in pipeline.model.state_dict().values()])


def test_depth_is_measured_along_the_viewing_axis(scene_run: Path) -> None:
    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, _ = eval_setup(scene_run / "config.yml", test_mode="test")
    cameras = pipeline.datamanager.train_dataset.cameras
    pipeline.model.collider.train()  # starts rays where those of a training step start
    along_rays = pipeline.model.get_outputs_for_camera(cameras[3:4])["depth"][..., 0]
    fx, fy, cx, cy = (getattr(cameras[3], name).item() for name in ("fx", "fy", "cx", "cy"))
    down, across = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    slant = (1 + ((across - cx) / fx) ** 2 + ((down - cy) / fy) ** 2).sqrt()
    pipeline.train()
    depth = render_still(pipeline.model, cameras.generate_rays(3, keep_shape=True)).depth
    torch.testing.assert_close(depth[0], along_rays / slant, rtol=1e-4, atol=1e-4)
    assert slant.max() > 1.1 and pipeline.model.training


def test_depth_is_that_of_the_source_and_looking_at_it_changes_nothing(
    edit_config: Make, settings: dict[str, Any]
) -> None:
    edited = run(edit_config("dds-edit", **settings, max_num_iterations=3))
    pipeline, edit = edited.pipeline, edited.pipeline._edit
    assert isinstance(edit.prior, ControlNet)
    assert (pipeline.eval_pictures() - edit.before).abs().max() > 1e-3

    before = weights(pipeline)
    now, source = (
        render_still(pipeline.model, edit.rays.of_view(2)).depth,
        pipeline._source_view(2).depth[None],
    )
    assert torch.equal(weights(pipeline), before)
    assert not torch.equal(now, source[0])

    (index,), (_, condition) = next(iter(edit.source_latents.items()))  # made in some step, after others
    pipeline.model.load_state_dict(edit.source_weights)
    depth = render_still(pipeline.model, edit.rays.of_view(index)).depth
    picture = torch.nn.functional.pixel_shuffle(condition[None], edit.prior.vae_factor)
    torch.testing.assert_close(picture, depth_picture(depth[None]), rtol=0, atol=1e-4)
    assert picture.std() > 0.1


def test_an_edit_with_depth_resumes_exactly(edit_config: Make, settings: dict[str, Any]) -> None:
    settings |= {"pipeline__fits_per_round": 2, "steps_per_save": 2, "max_num_iterations": 5}
    whole = run(edit_config("dds-edit", **settings))
    half = run_until_killed(edit_config("dds-edit", **settings, timestamp="half"), step=4)
    again = {**settings, "load_dir": half, "prompt": None}
    resumed = run(edit_config("dds-edit", **again, timestamp="resumed"))
    assert resumed._start_step == 3  # in the middle of a round; another one follows
    torch.testing.assert_close(weights(resumed.pipeline), weights(whole.pipeline), rtol=0, atol=1e-6)


def test_canny_shows_the_edges_of_the_photos(edit_config: Make, settings: dict[str, Any]) -> None:
    settings["pipeline__control__picture"] = "canny"
    edit = run(edit_config("sds-edit", **settings, max_num_iterations=1)).pipeline
    (index,), (_, condition) = next(iter(edit._edit.source_latents.items()))
    edges = torch.nn.functional.pixel_shuffle(condition[None], edit._edit.prior.vae_factor)
    torch.testing.assert_close(edges, canny_picture(edit.datamanager.train_photos([index], 32, 32)))
    assert 0.01 < edges.mean() < 0.7


def test_control_nets_that_cannot_be_used_are_refused_at_the_start(
    edit_config: Make, settings: dict[str, Any], capsys: Any
) -> None:
    def refused(method: str, **changes: Any) -> str:
        return refusal(edit_config(method, **{**settings, **changes}), capsys)

    assert "InstructPix2Pix" in refused("csd-edit-tiny", pipeline__prior="tiny-instruct")
    assert "no such ControlNet" in refused("dds-edit", pipeline__control__net="/no/such")
    assert "needs a ControlNet" in refused("dds-edit", pipeline__control__net="")
    assert "depth or canny" in refused("dds-edit", pipeline__control__picture="none")
