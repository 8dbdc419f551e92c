"""The benchmarks, which are run by hand: that they start, and that what they measure with works."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from csd_nerf.nerf.methods import METHODS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_can_be_started(file: Path) -> None:
    """Its imports are there and its options are built; they are run by hand, for they take long."""
    assert "main" in runpy.run_path(str(file), run_name="not_main")


@pytest.mark.parametrize(
    ("route", "parts"),
    [
        ("loop", {"draw", "encode", "unet", "transport", "decode", "round", "fit", "backward", "optimizer"}),
        ("gradient", {"draw", "encode", "unet", "transport", "backward", "optimizer"}),
    ],
)
def test_a_step_is_timed_by_its_parts(route: str, parts: set[str]) -> None:
    step = runpy.run_path(str(BENCHMARKS / "edit_step.py"), run_name="not_main")
    setting = step["Setting"](
        route=route, particles=2, gradient_share=1.0, render_size=32, full_size=False, device="cpu", steps=1
    )
    row = step["run_row"](setting)
    times = row["milliseconds"]
    assert times.keys() == parts | {"step"} and all(time > 0 for time in times.values())
    assert row["peak_mib"] > 1
    # A step of the loop is a fit and its share of a round; of the gradient's route, all of it.
    fits = METHODS["csd-edit-tiny"].pipeline.fits_per_round
    once = [part for part in ("draw", "encode", "unet", "transport", "decode") if part in parts]
    asked = sum(times[part] for part in once)
    assert asked < (times["round"] if route == "loop" else times["step"])
    if route == "loop":
        assert times["step"] == pytest.approx(
            times["round"] / fits + times["fit"] + times["backward"] + times["optimizer"]
        )


def test_options_of_captured_edits_are_those_of_the_methods() -> None:
    captured: Any = runpy.run_path(str(BENCHMARKS / "captured_edits.py"), run_name="not_main")
    for method in captured["Method"].__args__:
        options = captured["Options"](out=Path("out"), method=method, text_guidance=3.0, route="loop")
        arguments = captured["edit_arguments"](options)
        flag = f"{METHODS[method].pipeline.guidance_option}.text-guidance"
        assert arguments[arguments.index(flag) + 1] == "3.0" and "--pipeline.route" in arguments
        assert (arguments[:2] == ["--recipe", "tiny"]) == (method != "csd-edit-tiny")
