"""The rows of a comparison, their means over seeds, and both as CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from csd_nerf.comparison.compare_settings import Budget
from csd_nerf.comparison.jobs import Job
from csd_nerf.errors import InputError

Status = Literal["measured", "failed", "not run"]
PLAIN = ("prompt", "method", "seed", "budget", "budget_unit", "status", "reason")
COST = ("unet_evaluations", "seconds", "peak_memory_mib", "device")


@dataclass(frozen=True)
class Row:
    """One edit at one budget.

    Attributes:
        prompt, method, seed: of the edit; the seed of one that was made elsewhere is its own.
        budget: it was given; None where the budget does not apply.
        status: how far it came.
        reason: why it failed; empty otherwise.
        pictures: folder of its pictures, relative to the comparison's.
        evaluation: as `csd_nerf.evaluation.figures.Evaluation` writes it; None unless measured.
    """

    prompt: str
    method: str
    seed: int | None
    budget: Budget | None
    status: Status
    reason: str
    pictures: str
    evaluation: Mapping[str, Any] | None

    def figure(self, name: str) -> float | None:
        """The mean of a metric over the views; None where it was not measured."""
        found = (self.evaluation or {}).get("figures", {}).get(name)
        return None if found is None else found["after"]

    def gain(self, name: str) -> float | None:
        """How much a metric rose over the scene before the edit; None where that was not measured."""
        found = (self.evaluation or {}).get("figures", {}).get(name)
        return None if found is None or found["before"] is None else found["after"] - found["before"]

    def cost(self, name: str) -> Any:
        """An entry of the cost; None where it was not recorded."""
        return ((self.evaluation or {}).get("cost") or {}).get(name)


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation, `sqrt(sum (x - mean)^2 / (n - 1))`; None of a single seed.
        count: of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    def told_from(self, other: Spread) -> bool:
        """Whether the means are further apart than the deviations, added as independent ones; nothing is told
        from a single seed."""
        if self.deviation is None or other.deviation is None:
            return False
        return abs(self.mean - other.mean) > math.hypot(self.deviation, other.deviation)


def rows_of(jobs: Sequence[Job], failures: Mapping[int, str]) -> list[Row]:
    """What came of the edits so far.

    Args:
        jobs: of the comparison.
        failures: why those failed that did, by position.

    Raises:
        InputError: edits were measured from different cameras.
    """
    rows = []
    for number, job in enumerate(jobs):
        reason = failures.get(number, "")
        for budget, measurement in job.measurements:
            evaluation: Any = measurement.evaluation()
            status: Status = "measured" if evaluation else "failed" if reason else "not run"
            seed = job.seed if job.seed is not None or not evaluation else evaluation["seed"]
            why = reason if status == "failed" else ""
            row = Row(
                job.instruction.prompt,
                job.method,
                seed,
                budget,
                status,
                why,
                measurement.pictures,
                evaluation,
            )
            rows.append(row)
    _check_cameras(rows)
    return rows


def _check_cameras(rows: Sequence[Row]) -> None:
    measured = [row.evaluation for row in rows if row.evaluation is not None]
    for evaluation in measured:
        if evaluation["views"] != measured[0]["views"]:
            raise InputError(
                "edits were measured from different cameras",
                expected=f"those of {measured[0]['run']}: {', '.join(measured[0]['views']['photos'])}",
                got=f"in {evaluation['run']}: {', '.join(evaluation['views']['photos'])}",
                hint="compare edits of one scene and one dataset, in another --output",
            )


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of what is there of some values; None where there is none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    deviation = statistics.stdev(there) if len(there) > 1 else None
    return Spread(statistics.fmean(there), deviation, len(there))


@dataclass(frozen=True)
class Line:
    """A metric of all methods under one instruction.

    Attributes:
        name, better, unit: see `csd_nerf.evaluation.figures.Figure`.
        before: of the source scene, where that means something. Its distance to the nearest of several right
            answers is another for edits near to another answer: the mean over all edits.
        methods: the spread of each method that was measured.
        gains: the spread of what each method added to the source scene's, where that means something.
    """

    name: str
    better: str
    unit: str
    before: float | None
    methods: Mapping[str, Spread]
    gains: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The method whose mean is best; None for metrics that only describe, or of a single method."""
        if self.better == "neither" or len(self.methods) < 2:
            return None
        sign = 1 if self.better == "higher" else -1
        return max(self.methods, key=lambda method: sign * self.methods[method].mean)

    def as_good(self, method: str) -> bool:
        """Whether the seeds do not tell a method from the best one."""
        best = self.best
        if best is None or method == best:
            return False
        return not self.methods[method].told_from(self.methods[best])


def final_rows(rows: Sequence[Row], prompt: str) -> list[Row]:
    """The rows of an instruction at the last budget."""
    budgets = (row.budget for row in rows if row.budget is not None)
    last = max(budgets, key=lambda budget: budget.amount, default=None)
    return [row for row in rows if row.prompt == prompt and row.budget in (None, last)]


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Every metric that was measured in some rows, in the order of the evaluation."""
    kinds: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        for name, figure in (row.evaluation or {}).get("figures", {}).items():
            kinds.setdefault(name, figure)
    lines = []
    for name, kind in kinds.items():
        before = spread(
            row.evaluation["figures"][name]["before"]
            for row in rows
            if row.evaluation is not None and name in row.evaluation["figures"]
        )
        lines.append(
            Line(
                name,
                kind["better"],
                kind["unit"],
                None if before is None else before.mean,
                _by_method(rows, name, Row.figure),
                _by_method(rows, name, Row.gain),
            )
        )
    return lines


def _by_method(
    rows: Sequence[Row], name: str, value: Callable[[Row, str], float | None]
) -> dict[str, Spread]:
    found = {
        method: spread(value(row, name) for row in rows if row.method == method)
        for method in methods_of(rows)
    }
    return {method: over_seeds for method, over_seeds in found.items() if over_seeds is not None}


def methods_of(rows: Iterable[Row]) -> list[str]:
    """The methods in their order."""
    return list(dict.fromkeys(row.method for row in rows))


def as_csv(rows: Sequence[Row]) -> str:
    """A line for every row; metrics that were not measured are empty."""
    metrics = list(dict.fromkeys(name for row in rows for name in (row.evaluation or {}).get("figures", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*PLAIN, *COST, *metrics])
    for row in rows:
        writer.writerow([*_plain(row).values(), *map(row.cost, COST), *map(row.figure, metrics)])
    return text.getvalue()


def _plain(row: Row) -> dict[str, Any]:
    amount, unit = (None, None) if row.budget is None else (row.budget.amount, row.budget.unit)
    return dict(
        zip(PLAIN, (row.prompt, row.method, row.seed, amount, unit, row.status, row.reason), strict=True)
    )


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows in full, and the means over the seeds by instruction, metric and method."""
    summary: dict[str, Any] = {}
    for prompt in dict.fromkeys(row.prompt for row in rows):
        summary[prompt] = {
            line.name: {
                "better": line.better,
                "before": line.before,
                "best": line.best,
                "methods": {
                    method: {
                        "mean": value.mean,
                        "deviation": value.deviation,
                        "seeds": value.count,
                        "gain": dataclasses.asdict(line.gains[method]) if method in line.gains else None,
                    }
                    for method, value in line.methods.items()
                },
            }
            for line in lines_of(final_rows(rows, prompt))
        }
    return {
        "summary": summary,
        "rows": [{**_plain(row), "evaluation": row.evaluation} for row in rows],
    }
