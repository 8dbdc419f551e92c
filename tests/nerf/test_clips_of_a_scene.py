"""Edits of a scene by a prior for clips: ways through the capture are its particles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import refusal, run, run_until_killed

from csd_nerf.errors import InputError
from csd_nerf.nerf.runs import find_run, read_checkpoint
from csd_nerf.nerf.trying import ViewsToTry

FEW: dict[str, Any] = {
    "max_num_iterations": 4,
    "pipeline__particles": 2,
    "pipeline__fits_per_round": 2,
    "pipeline__descent__steps": 1,
    "pipeline__steps_per_picture": 0,
    "pipeline__turntable_frames": 2,
    "pipeline__prior_precision": "float32",
    "pipeline__vae_precision": "float32",
}


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    saved = read_checkpoint(find_run(run_folder).checkpoint)["pipeline"]
    return {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}


def difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first if first[name].numel())


def test_a_clip_of_one_view_is_that_view(edit_config: Any, motion: dict[str, str]) -> None:
    """Where layers of motion add nothing the edit is that of the prior for pictures."""
    pictures = run(edit_config(**FEW, timestamp="pictures"))
    clips = run(
        edit_config(**FEW, timestamp="clips", pipeline__motion=motion["quiet"], pipeline__clip_views=1)
    )
    assert clips.pipeline.unet_evaluations == pictures.pipeline.unet_evaluations
    assert difference(pictures.base_dir, clips.base_dir) < 1e-4
    moving = run(
        edit_config(**FEW, timestamp="moving", pipeline__motion=motion["moving"], pipeline__clip_views=1)
    )
    assert difference(pictures.base_dir, moving.base_dir) > 1e-2


def test_resumed_it_equals_an_uninterrupted_edit(edit_config: Any, motion: dict[str, str]) -> None:
    several = {**FEW, "pipeline__motion": motion["moving"], "pipeline__clip_views": 3}
    several["pipeline__kept_views"] = 6
    whole = run(edit_config(**several, timestamp="whole"))
    running = whole.pipeline._edit
    assert running is not None
    assert {len(views) for views in running.source_latents} == {3}
    assert len(running.targets.views) == 6
    killed = run_until_killed(edit_config(**several, timestamp="killed", steps_per_save=1), 3)
    again = run(edit_config(**{**several, "prompt": None, "load_dir": killed}))
    assert difference(whole.base_dir, again.base_dir) == 0
    with pytest.raises(InputError, match="a prior for pictures"):
        ViewsToTry(whole.pipeline, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pipeline__route": "gradient"}, "--pipeline.route"),
        ({"pipeline__region__source": "auto"}, "--pipeline.region.source"),
        ({"pipeline__particles": 0}, "--pipeline.particles"),
        ({"pipeline__clip_views": 100}, "--pipeline.clip-views"),
        ({"pipeline__clip_views": 4, "pipeline__kept_views": 7}, "at least 8, the views of 2 clips of 4"),
        ({"pipeline__motion": "", "pipeline__clip_views": 4}, "a prior for pictures"),
        ({"pipeline__motion": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_what_a_prior_for_clips_cannot_do_is_refused(
    options: dict[str, Any], said: str, edit_config: Any, motion: dict[str, str], capsys: Any
) -> None:
    config = edit_config(**{**FEW, "pipeline__motion": motion["quiet"], **options})
    assert said in refusal(config, capsys)
