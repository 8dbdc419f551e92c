"""An evaluation as tables in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from csd_nerf.evaluation.figures import Evaluation, Figure

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the run, its figures, what is unavailable and why, and its cost."""
    facts, views = evaluation.facts, evaluation.facts["views"]
    console.print(Text(f'{facts["method"]}, step {facts["steps"]}: "{facts["prompt"]}"'))
    console.print(
        f"{len(views['photos'])} evaluation views of {views['width']} x {views['height']} pixels"
        + (f"; known edit: {facts['known_edit']}" if facts["known_edit"] else ""),
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    table.add_column("")
    for heading in ("before", "after", "± views", "n"):
        table.add_column(heading, justify="right")
    for figure in evaluation.figures.measured:
        table.add_row(*map(Text, _row(figure)))
    console.print(table)
    for network in sorted({figure.network for figure in evaluation.figures.measured if figure.network}):
        console.print(Text(f"measured with {network}"))
    _print_missing(evaluation, console)
    if evaluation.cost is None:
        console.print("cost: not recorded by this run", highlight=False)
    else:
        cost = evaluation.cost
        memory = cost["peak_memory_mib"]
        console.print(
            f"cost: {cost['unet_evaluations']} U-Net evaluations, {cost['seconds']:.0f} s"
            + (f", at most {memory:.0f} MiB" if memory is not None else "")
            + f" ({cost['device']})",
            highlight=False,
            markup=False,
        )


def _print_missing(evaluation: Evaluation, console: Console) -> None:
    """One paragraph for each reason, with the metrics it takes away."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for missing in evaluation.figures.missing:
        reasons.setdefault((missing.reason, missing.hint), []).append(missing.name)
    for (reason, hint), names in reasons.items():
        console.print(Text(f"unavailable: {', '.join(names)}", style="yellow"))
        console.print(Text(f"  {reason}\n  {hint}"), soft_wrap=True)


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        f"{figure.name} [{figure.unit}]" if figure.unit else figure.name,
        ARROWS[figure.better],
        "" if figure.before is None else number(figure.before),
        number(figure.after),
        "" if figure.deviation is None else number(figure.deviation),
        str(figure.count),
    )


def number(value: float) -> str:
    """A figure with as many digits as say something."""
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Digits behind the point of such a figure."""
    return 2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4
