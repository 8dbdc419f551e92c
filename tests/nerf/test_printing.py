"""What is printed of prompts and paths is what they are, even where rich would read markup in them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nerf_runs import make_config, make_edit_config, run, run_until_killed
from rich.console import Console

from csd_nerf.comparison.compare_command import Compare
from csd_nerf.demo.child import CommandFailed
from csd_nerf.demo.running_stages import report_failure

PROMPT = "make it night [/b] [red] :bear:"
SMALL: dict[str, Any] = {
    "prompt": PROMPT,
    "timestamp": "named",
    "pipeline__picture_size": 32,
    "pipeline__picture_views": 1,
    "pipeline__turntable_frames": 0,
}


def test_an_edit_names_its_prompt_and_its_folder(
    scene_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[draft]"
    changes = {**SMALL, "max_num_iterations": 3, "steps_per_save": 1}
    killed = run_until_killed(make_edit_config("csd-edit-tiny", folder, scene_run, **changes), 2)
    assert folder in killed.parents
    printed = capsys.readouterr().out
    assert f"Editing {scene_run}" in printed and repr(PROMPT) in printed

    finished = run(make_edit_config("csd-edit-tiny", folder, killed, **{**changes, "timestamp": "again"}))
    printed = capsys.readouterr().out
    assert f"Going on with {killed}," in printed
    assert f"Pictures and turntable: {finished.base_dir}\n" in printed


def test_a_generation_names_its_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {**SMALL, "max_num_iterations": 1, "recipe": "tiny"}
    run(make_config("csd-generate", tmp_path, None, **changes))
    assert f"Generating {PROMPT!r}\n" in capsys.readouterr().out


def test_a_comparison_names_the_prompt_that_failed() -> None:
    console = Console(file=StringIO(), width=200)
    row = SimpleNamespace(status="failed", prompt=PROMPT, method="csd-edit", seed=0, reason="[/no] room")
    Compare()._say([row], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"failed: {PROMPT}, csd-edit, seed 0\n[/no] room\n" in printed


def test_a_stage_that_failed_is_named(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200)
    stage: Any = SimpleNamespace(key="given.1-[/b]")
    report_failure(stage, CommandFailed(1, ["[/no] room"], tmp_path / "[log]"), "again [/b]", console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.startswith("Failed: given.1-[/b] (exit status 1)\n  [/no] room\n")
    assert str(tmp_path / "[log]") in printed and "again [/b]" in printed
