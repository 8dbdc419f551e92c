"""Edits where the diffusion model says, against an object whose exact masks are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nerf_runs import make_config, make_edit_config, refusal, run
from nerfstudio.utils.eval_utils import eval_setup
from object_prior import ObjectPrior
from PIL import Image

import csd_nerf.nerf.region_relevance
import csd_nerf.priors
from csd_nerf.cli import main
from csd_nerf.errors import InputError
from csd_nerf.nerf.region_relevance import CLEAR, RelevantVoxels, otsu
from csd_nerf.nerf.rendering import render_still
from csd_nerf.nerf.source_scene import source_scene
from csd_nerf.pixel_rays import PixelRays
from csd_nerf.scenes.dataset import write_dataset
from csd_nerf.scenes.still_life import OBJECT_NAMES

Make = Any
SIZE = 64


def test_otsu_sets_two_groups_apart_and_says_how_clearly() -> None:
    low, high = torch.randn(9000) * 0.1 + 1, torch.randn(300) * 0.1 + 3
    values = torch.cat([low, high])
    threshold, separation = otsu(values, torch.ones(len(values)))
    assert low.max() - 0.1 <= threshold < high.min() and separation > 0.9
    assert otsu(torch.randn(20000), torch.ones(20000))[1] == pytest.approx(2 / math.pi, abs=0.01)
    three = torch.tensor([0.0, 1.0, 1.9])
    assert otsu(three, torch.ones(3))[0] == 0 and otsu(three, torch.tensor([1.0, 1.0, 100.0]))[0] == 1


def test_views_vote_on_what_they_show() -> None:
    """On a ball, against another and a far wall, of which a third of the views tell nonsense."""
    middles = torch.tensor([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]])
    on_unit_ball = F.normalize(torch.randn(12, 2, 3000, 3), dim=-1)
    balls = middles[:, None] + 0.2 * on_unit_ball
    wall = torch.tensor([50.0, 0.0, 0.0]) + torch.randn(12, 6000, 3) * torch.tensor([0.0, 9.0, 9.0])
    relevance = torch.full((12, 12000), 0.1)
    relevance[:, :3000] = 1.0
    relevance[::3] = torch.rand(4, 12000) * 5
    region = RelevantVoxels()
    vote = region.vote(torch.cat([balls.flatten(1, 2), wall], dim=1), relevance)
    assert region.contains(balls[:, 0]).float().mean() > 0.99
    assert not region.contains(balls[:, 1]).any() and region.contains(wall).float().mean() < 0.05
    assert vote.share == pytest.approx(0.25, abs=0.03) and vote.separation > CLEAR
    again = RelevantVoxels()
    again.load_state(region.state())
    assert torch.equal(again.contains(balls), region.contains(balls))

    # Far away as near by: the wall alone.
    far, of_wall = RelevantVoxels(), (torch.arange(12000) >= 6000).float().expand(12, -1)
    far.vote(torch.cat([balls.flatten(1, 2), wall], dim=1), of_wall)
    assert far.contains(wall).float().mean() > 0.9 and not far.contains(balls).any()
    with pytest.raises(InputError, match="sees nothing in the scene that the prompt would change"):
        region.vote(balls.flatten(1, 2), torch.full((12, 6000), 1e-3))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More and larger pictures than the other tests': surfaces are to be where they are."""
    return write_dataset(tmp_path_factory.mktemp("data") / "still_life", views=24, size=SIZE)


def edit(folder: Path, scene: Path, **changes: Any) -> Any:
    settings = {
        "max_num_iterations": 8, "pipeline__turntable_frames": 0, "pipeline__region__source": "auto",
        "pipeline__render_size": SIZE, **changes,
    }  # fmt: skip
    return run(make_edit_config("csd-edit-tiny", folder, scene, **settings))


@pytest.fixture(scope="module")
def edited(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Night, by a prior that lets it fall on the ball alone."""
    folder = tmp_path_factory.mktemp("edited")
    scene = make_config(
        "csd-nerfacto-tiny", folder, photos, max_num_iterations=400, timestamp="scene",
        pipeline__datamanager__train_num_rays_per_batch=1024,
    )  # fmt: skip
    load = csd_nerf.priors.load_prior

    def load_keeping_to_the_ball(*name: Any, **how: Any) -> ObjectPrior:
        return ObjectPrior(load(*name, **how), photos, "ball")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csd_nerf.priors, "load_prior", load_keeping_to_the_ball)
        return edit(folder, run(scene).base_dir)


def test_what_the_prior_would_change_is_the_region(edited: Any, photos: Path) -> None:
    pipeline = edited.pipeline
    cameras, indices = pipeline.datamanager.eval_cameras(SIZE, SIZE, 100)
    rays = PixelRays(cameras)
    with source_scene(pipeline):
        pipeline.model.train()
        for view, name in enumerate(pipeline.datamanager.eval_names(indices)):
            inside = render_still(pipeline.model, rays.of_view(view), inside=pipeline.inside).inside[0]
            objects = np.asarray(Image.open(photos / "objects" / name))
            true = torch.from_numpy(objects == OBJECT_NAMES.index("ball"))
            assert true.sum() > 50
            assert ((inside >= 0.5) & true).sum() > 0.75 * ((inside >= 0.5) | true).sum()
    assert Image.open(edited.base_dir / "pictures" / "region.png").size == (2 * SIZE + 4, 3 * SIZE + 8)


def test_a_ray_that_misses_it_has_the_sources_colour_to_the_bit(edited: Any) -> None:
    pipeline = edited.pipeline
    model, cameras = pipeline.model, pipeline.datamanager.eval_cameras(SIZE, SIZE, 100)[0]
    after = pipeline.draw(cameras)
    with source_scene(pipeline):
        before = pipeline.draw(cameras)
    model.eval()
    for index in range(len(cameras)):
        rays = model.collider(cameras.generate_rays(camera_indices=index, keep_shape=True).flatten())
        samples, _, _ = model.proposal_sampler(rays, density_fns=model.density_fns)
        meets = pipeline.inside(samples.frustums.get_positions()).any(-1).view(SIZE, SIZE)
        assert 0.02 < meets.float().mean() < 0.5
        assert torch.equal(after[index][:, ~meets], before[index][:, ~meets])
        assert not torch.equal(after[index][:, meets], before[index][:, meets])


def test_a_region_that_was_found_is_kept_when_the_edit_goes_on_and_opens(edited: Any) -> None:
    """The prior is not asked again: here it is one that lets night fall everywhere."""
    begun = edited.pipeline
    resumed = edit(edited.config.output_dir, edited.base_dir, prompt=None, timestamp="resumed").pipeline
    assert torch.equal(resumed._relevant.occupied, begun._relevant.occupied)
    assert torch.equal(resumed.eval_pictures(), begun.eval_pictures())
    assert resumed.unet_evaluations == begun.unet_evaluations
    _, opened, _, _ = eval_setup(edited.base_dir / "config.yml")
    assert torch.equal(opened.eval_pictures(), begun.eval_pictures())


def test_the_change_outside_is_measured(edited: Any, capsys: Any, no_weights: None) -> None:
    folder = edited.base_dir
    main(["evaluate", str(folder), "--size", str(SIZE)])
    assert "change_outside_worst_view" in capsys.readouterr().out
    figures = json.loads((folder / "evaluation.json").read_text())["figures"]
    inside, outside, worst = (
        figures[f"change_{name}"]["after"] for name in ("inside", "outside", "outside_worst_view")
    )
    assert inside > 5 * worst and worst >= outside > 0


def test_a_prompt_that_changes_nothing_has_no_region(
    edit_config: Make, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(csd_nerf.nerf.region_relevance, "LEAST", 100.0)
    assert "sees nothing in the scene" in refusal(edit_config(pipeline__region__source="auto"), capsys)
