"""Measured figures, those that could not be measured, and their form as JSON. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from csd_nerf.files import write_text

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Figure:
    """One metric of an edit.

    Attributes:
        name: key of the metric, as docs/evaluation.md explains it.
        after: mean over views, or pairs of views, of the edited scene.
        better: which way an edit is better; `neither` for figures that only describe it.
        before: the same of the source scene, where that means something.
        deviation: standard deviation of `after` over the views; None where there is a single value.
        count: of views or pairs measured; 1 for a figure of the views as a whole.
        unit: empty for pure numbers.
        network: the model that measured, with its pretraining; empty where none did.
    """

    name: str
    after: float
    better: Better
    before: float | None = None
    deviation: float | None = None
    count: int = 1
    unit: str = ""
    network: str = ""


@dataclass(frozen=True)
class Missing:
    """A metric that could not be measured.

    Attributes:
        name: key of the metric.
        reason: why, in one clause.
        hint: what to do to have it.
    """

    name: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Figures:
    """All that was measured of one edit."""

    measured: tuple[Figure, ...]
    missing: tuple[Missing, ...]

    def __getitem__(self, name: str) -> Figure:
        """The figure of a name; KeyError when it was not measured."""
        for figure in self.measured:
            if figure.name == name:
                return figure
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(figure.name == name for figure in self.measured)


def summarize(
    name: str,
    after: Sequence[float],
    better: Better,
    *,
    before: Sequence[float] | None = None,
    unit: str = "",
    network: str = "",
) -> Figure:
    """The figure of one value for each view; values that are not finite count for nothing.

    Raises:
        ValueError: when no value of `after` is finite.
    """
    values = [value for value in after if math.isfinite(value)]
    mean = _mean(values)
    return Figure(
        name=name,
        after=mean,
        better=better,
        before=None if before is None else _mean([value for value in before if math.isfinite(value)]),
        deviation=math.sqrt(_mean([(value - mean) ** 2 for value in values])) if len(values) > 1 else None,
        count=len(values),
        unit=unit,
        network=network,
    )


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no finite value to average")
    return sum(values) / len(values)


@dataclass(frozen=True)
class Evaluation:
    """The figures of one edited run, and everything needed to measure them again.

    Attributes:
        facts: run, method, prompt, checkpoint, views, size, baselines, versions: see docs/evaluation.md.
        figures: of the edit.
        cost: of the run, as `csd_nerf.nerf.cost.Cost`; None when the run did not record it.
    """

    facts: dict[str, Any]
    figures: Figures
    cost: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Figures and missing ones by name, beside the facts."""
        return {
            **self.facts,
            "figures": {figure.name: _without_name(figure) for figure in self.figures.measured},
            "unavailable": {missing.name: _without_name(missing) for missing in self.figures.missing},
            "cost": self.cost,
        }

    def write(self, file: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InputError: it cannot be written there.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")


def _without_name(entry: Figure | Missing) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(entry).items() if key != "name"}
