"""Summaries over views, and their form as JSON and as a table."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from csd_nerf.evaluation.colours import colour_spread
from csd_nerf.evaluation.figures import Evaluation, Figures, Missing, summarize
from csd_nerf.evaluation.table import print_evaluation


def test_a_pair_without_a_common_point_counts_for_nothing() -> None:
    figure = summarize("error", [1.0, math.nan, 3.0], "lower", before=[math.nan, 4.0, 6.0])
    assert (figure.after, figure.before, figure.deviation, figure.count) == (2.0, 5.0, 1.0, 2)
    assert summarize("error", [1.0], "lower").deviation is None
    with pytest.raises(ValueError, match="no finite value"):
        summarize("error", [math.nan], "lower")


def test_colour_spread_of_two_views() -> None:
    views = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.6)])
    assert colour_spread(views) == pytest.approx(0.2)
    assert colour_spread(views[:1]) == 0


@pytest.fixture
def evaluation() -> Evaluation:
    measured = summarize("psnr_to_source", [20.0, 22.0], "neither", unit="dB", network="a network")
    missing = tuple(Missing(name, "no weights", "fetch them") for name in ("one", "other"))
    facts = {
        "method": "csd-edit",
        "steps": 4,
        "prompt": "make it [red]",
        "known_edit": None,
        "views": {"photos": ["a.png"], "width": 64, "height": 48},
    }
    cost = {
        "steps": 4, "unet_evaluations": 80, "seconds": 9.0, "peak_memory_mib": None, "device": "cpu"
    }  # fmt: skip
    return Evaluation(facts, Figures((measured,), missing), cost)


def test_json_names_what_is_there_and_what_is_missing(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path / "new" / "figures.json")
    (file,) = (tmp_path / "new").iterdir()  # no partial file is left
    report = json.loads(file.read_text())
    assert report["figures"]["psnr_to_source"]["after"] == 21.0
    assert report["unavailable"]["other"] == {"reason": "no weights", "hint": "fetch them"}
    assert report["cost"]["unet_evaluations"] == 80
    assert evaluation.figures["psnr_to_source"].unit == "dB" and "one" not in evaluation.figures
    with pytest.raises(KeyError):
        evaluation.figures["one"]


def test_the_table_says_everything_once(evaluation: Evaluation) -> None:
    out = io.StringIO()
    print_evaluation(evaluation, Console(file=out, width=120))
    printed = out.getvalue()
    for part in (
        "make it [red]",
        "64 x 48",
        "21.00",
        "dB",
        "measured with a network",
        "one, other",
        "80 U-Net",
    ):
        assert part in printed
    assert printed.count("no weights") == 1 and "MiB" not in printed
