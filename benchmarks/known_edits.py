"""How well, and how consistently, methods make edits whose answer is known: `csd-nerf compare` on two scenes.

    python benchmarks/known_edits.py --out results/known
    python benchmarks/known_edits.py --out results/known --data SCENE --load-dir RUN --docs docs/results.md

On the rendered still life and, where `--data` names one, on a captured scene. The comparisons are kept in the
folders `still-life` and that of the scene's name; what is there is not run again. Results are kept as
known_edits.json with the commit that made them; `--docs` writes them as a table between its two markers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from csd_nerf.comparison.compare_command import Compare  # noqa: E402
from csd_nerf.errors import InputError, exit_on_input_error  # noqa: E402
from csd_nerf.files import write_text  # noqa: E402
from csd_nerf.scenes.operators import OPERATORS, TINT_INSTRUCTION, TINTS  # noqa: E402

BEGIN, END = "<!-- known-edits: begin -->", "<!-- known-edits: end -->"
GAIN, HUES = "psnr_to_known_edit", "hue_deviation"
OTHERS = {
    "LPIPS": ("lpips_to_known_edit", ".2f"),
    "change error, 8°": ("reprojection_change_error_short", ".3f"),
    "30°": ("reprojection_change_error_long", ".3f"),
    "change": ("change", ".2f"),
    "structure": ("edge_correlation", ".2f"),
}
"""Metric and format of the columns between gain and hue spread."""
CAPTION = f"""\
Gain: PSNR of the evaluation renders towards the right answer, less that of the scene before the edit.
"{TINT_INSTRUCTION}" has {len(TINTS)} right answers ({", ".join(TINTS)}): the one counts,
before and after, that all evaluation views of an edit together are nearest to. LPIPS: distance to the right
answer. Change error: how differently two views 8 or 30 degrees apart change a point; little change has little
of it for free, so see the change beside it, the mean absolute difference to the scene before. Structure: how
well edges stay where they were (`edge_correlation`). Hue spread, in degrees: of the views of one edit, where
several hues are right.
"""


@dataclass
class Options:
    """What to run."""

    out: Path
    """Folder for the comparisons and known_edits.json."""
    data: Path | None = None
    """A captured scene, beside the still life."""
    load_dir: Path | None = None
    """Run folder of that scene, trained; it is trained on the way otherwise."""
    edits: tuple[str, ...] = ("night", "winter", "tint")
    """Names of exact operators, and tint, which is ambiguous."""
    methods: tuple[str, ...] = (
        "csd-edit",
        "cds-edit",
        "sds-edit",
        "csd-edit-dataset",
        "in2n-baseline",
        "refit-baseline",
        "per-view",
    )
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the edits."""
    evaluations: tuple[int, ...] = (1600,)
    """Budgets in U-Net evaluations."""
    recipe: str = "tiny"
    """Of all methods."""
    docs: Path | None = None
    """Markdown file to write the table into."""


def main(options: Options) -> None:
    """Compare, keep the results, and write the table."""
    if options.load_dir is not None and options.data is None:
        raise InputError(
            "a run was given without its scene",
            expected="--data with the dataset that --load-dir was trained on",
            got=f"--load-dir {options.load_dir} alone",
            hint="add --data; the still life is always trained on the way",
        )
    scenes: dict[str, tuple[Path | None, Path | None]] = {"still life": (None, None)}
    if options.data is not None:
        scenes[options.data.resolve().name] = options.data, options.load_dir
    results: dict[str, Any] = {"commit": commit(), "scenes": {}}
    failed = False
    for name, (data, load_dir) in scenes.items():
        comparison = Compare(
            output=options.out / name.replace(" ", "-"),
            data=data,
            load_dir=load_dir,
            prompts=tuple(instruction(edit) for edit in options.edits),
            methods=options.methods,
            seeds=options.seeds,
            evaluations=options.evaluations,
            recipe=options.recipe,
        )
        try:
            comparison.run()
        except SystemExit:
            failed = True  # said by the comparison; the other scene goes on
        file = comparison.output / "results.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf8"))
            results["scenes"][name] = {"command": found["command"], "summary": found["summary"]}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "known_edits.json", json.dumps(results, indent=1) + "\n")
    if options.docs is not None:
        write_text(options.docs, with_table(options.docs.read_text(encoding="utf8"), table(results)))
    print(table(results))
    if failed:
        raise SystemExit(1)


def instruction(edit: str) -> str:
    """What asks for an edit.

    Raises:
        InputError: its answer is not known.
    """
    known = {name: operator.instruction for name, operator in OPERATORS.items()} | {"tint": TINT_INSTRUCTION}
    if edit not in known:
        raise InputError(
            "there is no such edit", expected=", ".join(known), got=repr(edit), hint="check --edits"
        )
    return known[edit]


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it; empty outside of a repository."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


def table(results: dict[str, Any]) -> str:
    """Gain in dB towards the known edit, consistency and structure, mean ± deviation over the seeds."""
    lines = [
        f"At commit `{results['commit']}`; mean ± standard deviation over the seeds, at the last budget.",
        CAPTION,
        f"| scene | instruction | method | gain (dB) | {' | '.join(OTHERS)} | hue spread |",
        f"|---|---|---|---|{'---|' * len(OTHERS)}---|",
    ]
    for scene, compared in results["scenes"].items():
        for prompt, metrics in compared["summary"].items():
            for method, known in metrics.get(GAIN, {}).get("methods", {}).items():
                found = {name: metric["methods"].get(method) for name, metric in metrics.items()}
                cells = [
                    cell(known["gain"], ".1f", "+"),
                    *(cell(found.get(name), form) for name, form in OTHERS.values()),
                    cell(found.get(HUES), ".1f") if prompt == TINT_INSTRUCTION else "",
                ]
                lines.append(f"| {scene} | {prompt} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(found: dict[str, Any] | None, form: str, sign: str = "") -> str:
    """A mean with its deviation; empty where nothing was measured."""
    if found is None:
        return ""
    deviation = "" if found["deviation"] is None else f" ± {found['deviation']:{form}}"
    return f"{found['mean']:{sign}{form}}{deviation}"


def with_table(text: str, lines: str) -> str:
    """A markdown text with the table between its two markers.

    Raises:
        InputError: the markers are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(
            "there is no place for the table",
            expected=f"{BEGIN} and, further down, {END}, once each",
            got="a text without them",
            hint="add both lines where the table is to be",
        )
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{lines}\n{text[text.index(END) :]}"


if __name__ == "__main__":
    with exit_on_input_error():
        main(tyro.cli(Options))
