"""The report: one HTML file with table, pictures, videos, plots, commands and versions in it."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from csd_nerf.comparison.compare_settings import Budget
from csd_nerf.comparison.jobs import SOURCE_PICTURES, VIDEO, Job
from csd_nerf.comparison.plots import COLOURS, legend, plot
from csd_nerf.comparison.results import Line, Row, Spread, final_rows, lines_of, methods_of, spread
from csd_nerf.demo.stages import Stage
from csd_nerf.display import minutes
from csd_nerf.evaluation.table import ARROWS, decimals, number
from csd_nerf.files import write_text
from csd_nerf.pages import (
    command_block,
    embedded,
    filled,
    picture,
    slider,
    table_row,
    tables,
    versions,
    view_buttons,
    wrapped,
)

TITLE = "Which edit is better?"
PACKAGES = ("csd-nerf", "nerfstudio", "torch", "diffusers", "transformers", "torchmetrics")
FOLLOWS = ("psnr_to_known_edit", "clip_directional_similarity", "clip_text_similarity", "change")
"""Metrics that say how well an edit follows, the first measured of which is plotted against the cost."""
STRENGTH, CONSISTENCY = "change", "reprojection_change_error_short"


def write_report(
    file: Path, rows: Sequence[Row], scene: Sequence[Stage], jobs: Sequence[Job], again: str
) -> None:
    """Write the report.

    Args:
        file: to write, in the folder of the comparison.
        rows: of the comparison.
        scene: stages that made the scene.
        jobs: all edits, whose commands are shown.
        again: the `csd-nerf compare` command that made it.
    """
    methods = methods_of(rows)
    colours = {method: COLOURS[place % len(COLOURS)] for place, method in enumerate(methods)}
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    stages = [*scene, *(stage for job in jobs for stage in job.stages)]
    page = filled(
        "csd_nerf.comparison",
        f"{TITLE} - csd-nerf compare",
        heading=TITLE,
        intro=_intro(rows, methods, prompts),
        failures=_failures(rows),
        sections="\n".join(_section(file.parent, rows, prompt, colours) for prompt in prompts),
        unavailable=_unavailable(rows),
        command=command_block(
            "It makes this page, and goes on where it was interrupted", wrapped(shlex.split(again))
        ),
        commands=html.escape("\n\n".join(shlex.join(stage.command()) for stage in stages)),
        tables=tables({"Settings": _settings(rows), "Made with": versions(PACKAGES)}),
    )
    write_text(file, page)


def _intro(rows: Sequence[Row], methods: Sequence[str], prompts: Sequence[str]) -> str:
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    budgets = sorted({row.budget for row in rows if row.budget}, key=lambda budget: budget.amount)
    said = [
        f"{len(prompts)} instruction{'s' * (len(prompts) > 1)}, {len(methods)} methods, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})."
    ]
    if budgets:
        said.append(f"Methods that edit the scene have {budgets[-1]}; the table has what they used.")
    said.append(
        "Figures are means over the seeds ± their standard deviation. The best mean is coloured; a dotted "
        "line is under those that the seeds do not tell from it: nearer than both deviations together, or of "
        "a single seed."
    )
    return html.escape(" ".join(said))


def _failures(rows: Sequence[Row]) -> str:
    failed: dict[tuple[str, str, int | None], Row] = {}
    for row in rows:
        if row.status == "failed":  # at all its budgets, from the one it failed at
            failed.setdefault((row.prompt, row.method, row.seed), row)
    waiting = sum(row.status == "not run" for row in rows)
    parts = [
        f'<p><b>Failed:</b> {html.escape(_name(row))}</p><p class="failure">{html.escape(row.reason)}</p>'
        for row in failed.values()
    ]
    if waiting:
        parts.append(f"<p><b>Not finished:</b> {waiting} of {len(rows)} measurements are still to come.</p>")
    return "\n".join(parts)


def _name(row: Row) -> str:
    seed = "" if row.seed is None else f", seed {row.seed}"
    budget = "" if row.budget is None else f", {row.budget}"
    return f"{row.prompt}, {row.method}{seed}{budget}"


def _section(folder: Path, rows: Sequence[Row], prompt: str, colours: Mapping[str, str]) -> str:
    final = final_rows(rows, prompt)
    measured = [row for row in final if row.evaluation is not None]
    heading = f"<h2>{html.escape(prompt)}</h2>"
    if not measured:
        return f"{heading}\n<p>Nothing has been measured yet.</p>"
    return "\n".join(
        (
            heading,
            _pictures(folder, measured),
            _videos(folder, measured),
            _table(final),
            _plots([row for row in rows if row.prompt == prompt], colours),
        )
    )


def _table(rows: Sequence[Row]) -> str:
    methods = methods_of(rows)
    heads = "".join(f"<th>{html.escape(method)}</th>" for method in ("before", *methods))
    body = [*map(lambda line: _line(line, methods), lines_of(rows)), *_costs(rows, methods)]
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Figures of all methods">'
        f"<table><thead><tr><th>figure</th>{heads}</tr></thead>\n<tbody>"
        + "\n".join(body)
        + "</tbody></table></div>"
    )


def _line(line: Line, methods: Sequence[str]) -> str:
    name = f"{line.name.replace('_', ' ')} {ARROWS[line.better]}" + (f" [{line.unit}]" if line.unit else "")
    cells = [f"<td>{'' if line.before is None else number(line.before)}</td>"]
    for method in methods:
        found = line.methods.get(method)
        kind = "best" if method == line.best else "near" if found and line.as_good(method) else ""
        cells.append(
            f'<td class="{kind}">{_with_spread(found)}</td>' if kind else f"<td>{_with_spread(found)}</td>"
        )
    return f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>"


def _with_spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    digits = decimals(found.mean)
    deviation = "" if found.deviation is None else f" <small>± {found.deviation:.{digits}f}</small>"
    return f"{found.mean:.{digits}f}{deviation}"


def _costs(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    entries = (
        ("U-Net evaluations", "unet_evaluations", lambda value: f"{value:,.0f}"),
        ("time", "seconds", minutes),
        ("peak memory [MiB]", "peak_memory_mib", lambda value: f"{value:,.0f}"),
    )
    lines = []
    for title, name, shown in entries:
        means = [spread(row.cost(name) for row in rows if row.method == method) for method in methods]
        cells = "".join(f"<td>{'-' if mean is None else shown(mean.mean)}</td>" for mean in means)
        lines.append(f"<tr><th>{title}</th><td></td>{cells}</tr>")
    counts = "".join(
        f"<td>{sum(row.method == method and row.status == 'measured' for row in rows)} of "
        f"{sum(row.method == method for row in rows)}</td>"
        for method in methods
    )
    return [*lines, f"<tr><th>edits measured</th><td></td>{counts}</tr>"]


def _first_of_each(rows: Sequence[Row]) -> dict[str, Row]:
    """The first seed's row of each method: all seeds would make the page too large to send."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.method, row)
    return first


def _pictures(folder: Path, rows: Sequence[Row]) -> str:
    befores = [embedded(file) for file in sorted((folder / SOURCE_PICTURES).glob("before-*.jpg"))]
    cards = []
    for method, row in _first_of_each(rows).items():
        afters = [embedded(file) for file in sorted((folder / row.pictures).glob("after-*.jpg"))]
        shown = slider(
            picture(befores[0], "before", "The scene before the edit"),
            picture(afters[0], "after", f"The edit by {method}"),
        )
        seed = "" if row.seed is None else f' <span class="soft">seed {row.seed}</span>'
        cards.append(
            f'<div class="card"><h3>{html.escape(method)}{seed}</h3>\n{shown}\n'
            f"{view_buttons(befores, afters)}</div>"
        )
    return f'<div class="edits">{"".join(cards)}</div>'


def _videos(folder: Path, rows: Sequence[Row]) -> str:
    clips = {"before": folder / SOURCE_PICTURES / VIDEO}
    clips |= {method: folder / row.pictures / VIDEO for method, row in _first_of_each(rows).items()}
    there = {name: file for name, file in clips.items() if file.exists()}
    if len(there) < 2:
        return ""
    figures = []
    for place, (name, file) in enumerate(there.items()):
        controls = "controls " if place == 0 else ""
        figures.append(
            f'<figure class="card"><video src="{embedded(file)}" {controls}loop muted playsinline '
            f'aria-label="Turntable: {html.escape(name)}"></video>'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
        )
    return f'<div class="together">{"".join(figures)}</div>'


def _plots(rows: Sequence[Row], colours: Mapping[str, str]) -> str:
    methods = methods_of(rows)
    there = {name for row in rows for name in (row.evaluation or {}).get("figures", {})}
    follows = next((name for name in FOLLOWS if name in there), None)
    shown = []
    if follows is not None:
        timed = any(row.budget is not None and row.budget.unit == "minutes" for row in rows)
        spent = _minutes if timed else lambda row: row.cost("unet_evaluations")
        cost = {method: _groups(rows, method, spent, follows) for method in methods}
        x = "minutes of editing" if timed else "U-Net evaluations"
        shown.append(plot(cost, x=x, y=follows.replace("_", " "), colours=colours))
    if CONSISTENCY in there:
        agreement = {
            method: _groups(rows, method, lambda row: row.figure(STRENGTH), CONSISTENCY) for method in methods
        }
        shown.append(
            plot(
                agreement,
                x="strength of the edit (change)",
                y="inconsistency of the change, 8 degrees",
                colours=colours,
            )
        )
    figures = "".join(f'<figure class="card">{svg}</figure>' for svg in shown if svg)
    return f'<div class="plots">{figures}</div>{legend({method: colours[method] for method in methods})}'


def _minutes(row: Row) -> float | None:
    seconds = row.cost("seconds")
    return None if seconds is None else seconds / 60


def _groups(rows: Sequence[Row], method: str, across: Any, up: str) -> list[list[tuple[float, float]]]:
    """The points of a method, the seeds of each budget together."""
    groups: dict[Budget | None, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = across(row), row.figure(up)
        if row.method == method and x is not None and y is not None:
            groups.setdefault(row.budget, []).append((x, y))
    return list(groups.values())


def _unavailable(rows: Sequence[Row]) -> str:
    """Which metrics are missing and why; or which networks measured."""
    reasons: dict[tuple[str, str], list[str]] = {}
    networks = set()
    for row in rows:
        evaluation = row.evaluation or {}
        networks |= {
            figure["network"] for figure in evaluation.get("figures", {}).values() if figure["network"]
        }
        for name, missing in evaluation.get("unavailable", {}).items():
            names = reasons.setdefault((missing["reason"], missing["hint"]), [])
            if name not in names:
                names.append(name)
    parts = [
        f"<p>{html.escape(', '.join(names))}: {html.escape(reason)}. {html.escape(hint)}.</p>"
        for (reason, hint), names in reasons.items()
    ] or ["<p>Nothing: every metric was measured.</p>"]
    return "\n".join([*parts, *(f"<p>Measured with {html.escape(name)}.</p>" for name in sorted(networks))])


def _settings(rows: Sequence[Row]) -> str:
    first = next((row.evaluation for row in rows if row.evaluation is not None), None)
    if first is None:
        return ""
    views = first["views"]
    entries = {
        "scene": first["source"],
        "views": f"{len(views['photos'])} of {views['width']} x {views['height']} pixels",
        "short baseline": _degrees(views["short_baseline_degrees"]),
        "long baseline": _degrees(views["long_baseline_degrees"]),
        "priors": ", ".join(sorted({row.evaluation["prior"] for row in rows if row.evaluation is not None})),
        "devices": ", ".join(sorted({str(row.cost("device")) for row in rows if row.cost("device")})),
    }
    return "\n".join(table_row(name, value) for name, value in entries.items())


def _degrees(angles: Sequence[float]) -> str:
    return f"{sum(angles) / len(angles):.1f} degrees on average" if angles else "none"
