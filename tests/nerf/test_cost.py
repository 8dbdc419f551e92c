"""cost.json of a run, which may be somebody else's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from csd_nerf.errors import InputError
from csd_nerf.nerf.cost import NOTHING, Cost, read_cost, write_cost

SOME = Cost(steps=3, unet_evaluations=20, seconds=1.5, peak_memory_mib=100.0, device="cpu")


@pytest.mark.parametrize("cost", [NOTHING, SOME])
def test_a_cost_is_read_as_it_was_written(cost: Cost, tmp_path: Path) -> None:
    assert read_cost(tmp_path) is None
    write_cost(tmp_path, cost)
    assert read_cost(tmp_path) == cost


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        "null",
        "[" * 100_000,
        *(
            json.dumps({**dataclasses.asdict(SOME), name: value})
            for name, value in {
                "seconds": "<script>",
                "steps": None,
                "unet_evaluations": -1,
                "peak_memory_mib": float("nan"),
                "device": 3,
                "more": 1,
            }.items()
        ),
    ],
    ids=lambda text: text[:20],
)
def test_a_cost_that_nobody_wrote_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(InputError, match=r"cost\.json cannot be read"):
        read_cost(tmp_path)


def test_a_cost_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cost\.json cannot be read"):
        read_cost(tmp_path)
