"""Training in half precision with a loss scale, as on a GPU: resuming with and without, and dropped steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nerf_runs import make_config, run

Make = Any
pytestmark = pytest.mark.usefixtures("half_precision")


def train_scene(dataset: Path, folder: Path, name: str, **changes: Any) -> Any:
    settings = {"max_num_iterations": 2, "pipeline__datamanager__train_num_rays_per_batch": 64, **changes}
    return run(make_config("csd-nerfacto-tiny", folder, dataset, timestamp=name, **settings))


def test_a_scene_and_an_edit_go_on_in_another_precision(
    dataset: Path, edit_config: Make, tmp_path: Path
) -> None:
    """As those do that were begun on a CPU and are continued on a GPU; and the other way."""
    full = train_scene(dataset, tmp_path, "full", mixed_precision=False)
    half = train_scene(dataset, tmp_path, "half", load_dir=full.base_dir, mixed_precision=True)
    assert half._start_step == 2 and half.grad_scaler.is_enabled() and half.grad_scaler.get_scale() > 1
    back = train_scene(dataset, tmp_path, "back", load_dir=half.base_dir, mixed_precision=False)
    assert back._start_step == 4 and not back.grad_scaler.is_enabled()

    full = run(edit_config(max_num_iterations=2, mixed_precision=False))
    half = run(
        edit_config(max_num_iterations=4, load_dir=full.base_dir, timestamp="half", mixed_precision=True)
    )
    assert half._start_step == 2 and half.grad_scaler.get_scale() > 1
    half.grad_scaler.update(32.0)
    half.save_checkpoint(3)
    more = run(edit_config(max_num_iterations=6, load_dir=half.base_dir, timestamp="more"))
    assert more._start_step == 4 and more.grad_scaler.get_scale() <= 32  # it goes on


def test_steps_that_change_nothing_are_mentioned(edit_config: Make, capsys: Any, monkeypatch: Any) -> None:
    far_too_much = partial(torch.amp.GradScaler, "cpu", init_scale=2.0**127)
    with monkeypatch.context() as patch:
        patch.setattr("nerfstudio.engine.trainer.GradScaler", far_too_much)
        run(edit_config(max_num_iterations=3, mixed_precision=True))
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Step 0 was dropped") == 1
    assert "3 steps were dropped" in printed
    run(edit_config(max_num_iterations=1, timestamp="fits", mixed_precision=False))
    assert "dropped" not in capsys.readouterr().out
