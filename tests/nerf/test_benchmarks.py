from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_can_be_started(file: Path) -> None:
    """Its imports are there and its options are built; they are run by hand, for they take long."""
    assert "main" in runpy.run_path(str(file), run_name="not_main")
