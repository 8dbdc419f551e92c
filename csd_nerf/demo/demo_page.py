"""The page that shows a demo: one HTML file with everything in it, which opens anywhere without a network."""

from __future__ import annotations

import html
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from csd_nerf.bundled import BUNDLED_EDITORS
from csd_nerf.demo.demo_settings import DemoSettings, Progress
from csd_nerf.demo.draw_pictures import FACTS
from csd_nerf.demo.stages import EDIT_RUN, PICTURES, SCENE_RUN, Stage
from csd_nerf.display import minutes
from csd_nerf.files import write_text
from csd_nerf.pages import (
    command_block,
    data_uri,
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

PACKAGES = ("csd-nerf", "nerfstudio", "torch", "diffusers", "transformers")

SHEET_GAP = 4
"""Pixels between the rows of a sheet, as `csd_nerf.nerf.sheets.sheet` leaves them."""


def write_page(
    folder: Path, settings: DemoSettings, stages: Sequence[Stage], progress: Progress, again: str
) -> Path:
    """Write `index.html` and `commands.sh` of a demo whose pictures are there.

    Args:
        folder: of the demo.
        settings: it was made with.
        stages: whose commands are shown.
        progress: with their timings.
        again: the `csd-nerf demo` command that made the folder.

    Returns:
        The page.
    """
    pictures = folder / PICTURES
    facts = json.loads((pictures / FACTS).read_text(encoding="utf8"))
    numbers = range(1, facts["views"] + 1)
    before, after = ([embedded(pictures / f"{row}-{n}.png") for n in numbers] for row in ("before", "after"))
    commands = [(stage.title, wrapped(stage.command())) for stage in stages]
    write_text(folder / "commands.sh", _script(commands, again))
    page = filled(
        "csd_nerf.demo",
        f"{settings.prompt} - csd-nerf demo",
        prompt=html.escape(settings.prompt),
        intro=html.escape(_intro(settings)),
        slider=slider(
            picture(before[0], "before", "The scene before the edit"),
            picture(after[0], "after", "The scene after the edit"),
        ),
        views=view_buttons(before, after),
        video=embedded(pictures / "turntable.mp4"),
        figures=_figures(settings, stages, progress, facts),
        course=_course(folder, before[0], after[0], settings),
        truth=_truth(pictures, facts, after),
        commands="\n".join(command_block(*command) for command in commands),
        next_intro=html.escape(_next_intro(settings)),
        next_commands="\n".join(command_block(*command) for command in _next_commands(settings)),
        tables=tables({"Time taken": _timings(stages, progress), "Made with": versions(PACKAGES)}),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _intro(settings: DemoSettings) -> str:
    scene = "A still life, rendered from a circle of cameras," if settings.data is None else "A capture"
    return (
        f"{scene} was learned as a NeRF, then changed by these words with Collaborative Score Distillation: "
        "a diffusion model that edits pictures proposes the change, the views of the scene share its scores "
        "so that they agree on one edit, and the scene is fitted to them, round after round."
    )


def _figures(
    settings: DemoSettings, stages: Sequence[Stage], progress: Progress, facts: dict[str, Any]
) -> str:
    figures = [
        (minutes(_seconds(stages, progress)), f"on {os.cpu_count()} processor cores"),
        (str(settings.edit_steps), "steps of editing"),
    ]
    if "psnr" in facts:
        gain = facts["psnr"]["after"] - facts["psnr"]["before"]
        figures.append((f"{gain:+.1f} dB", "towards the exact edit (PSNR)"))
    return "\n".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in figures)


def _course(folder: Path, before: str, after: str, settings: DemoSettings) -> str:
    """The first view as the edit goes on, from the sheets that the edit left."""
    pictures = [("before", before)]
    for sheet in sorted((folder / EDIT_RUN / "pictures").glob("step-*.png")):
        found = re.fullmatch(r"step-(\d+)", sheet.stem)
        if found and int(found.group(1)) < settings.edit_steps:
            pictures.append((f"{int(found.group(1))} steps", _after_of_sheet(sheet, folder)))
    pictures.append((f"{settings.edit_steps} steps", after))
    return "\n".join(
        f'<figure><img src="{picture}" alt="View 1, {when}"><figcaption>{when}</figcaption></figure>'
        for when, picture in pictures
    )


def _after_of_sheet(sheet: Path, folder: Path) -> str:
    """The first picture of a sheet's lower row, which has the shape of `before-1.png`."""
    width, height = Image.open(folder / PICTURES / "before-1.png").size
    with Image.open(sheet) as both:
        row = (both.height - SHEET_GAP) // 2
        picture = both.crop((0, both.height - row, round(row * width / height), both.height))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return data_uri(buffer.getvalue(), ".png")


def _truth(pictures: Path, facts: dict[str, Any], after: Sequence[str]) -> str:
    """The edited views above what they should be, where that is known."""
    if "psnr" not in facts:
        return ""
    psnr = facts["psnr"]
    truth = [embedded(pictures / f"truth-{number}.png") for number in range(1, facts["views"] + 1)]
    rows = [
        (f"The scene after the edit: {psnr['after']:.1f} dB (before it: {psnr['before']:.1f} dB)", after),
        ("The scene's own pictures under the exact operator that the diffusion model learned from", truth),
    ]
    cells = "\n".join(
        f"<p>{caption}</p>\n"
        + "\n".join(
            f'<img src="{image}" alt="View {place}, {what}">' for place, image in enumerate(images, start=1)
        )
        for (caption, images), what in zip(rows, ("edited", "by the exact operator"), strict=True)
    )
    columns = f'style="--columns: {len(after)}"'
    return f'<h2>Against the exact edit</h2>\n<div class="truth" {columns}>\n{cells}\n</div>\n'


def _script(commands: Sequence[tuple[str, str]], again: str) -> str:
    # A prompt may have lines of its own, none of which may leave the comment.
    head = f"# The commands of `{again}`, one by one.".replace("\n", "\n# ")
    lines = ["#!/bin/sh", head, "set -e", 'cd "$(dirname "$0")"', ""]
    for title, command in commands:
        lines += [f"# {' '.join(title.split())}", command, ""]
    return "\n".join(lines)


def _next_commands(settings: DemoSettings) -> list[tuple[str, str]]:
    other = "make it winter" if "winter" not in settings.prompt else "make it night"
    edit = ["ns-train", "csd-edit-tiny", "--load-dir", SCENE_RUN, "--prompt", other]
    if settings.prior != "tiny-instruct":
        edit += ["--pipeline.prior", settings.prior]
    return [
        (
            "Walk around in the edited scene",
            wrapped(["ns-viewer", "--load-config", f"{EDIT_RUN}/config.yml"]),
        ),
        ("Edit the same scene in another way, and watch it", wrapped(edit)),
    ]


def _next_intro(settings: DemoSettings) -> str:
    if settings.prior not in BUNDLED_EDITORS:
        return "To be run in this folder, too."
    from csd_nerf.scenes.operators import OPERATORS, PAINTING_INSTRUCTION, TINT_INSTRUCTION

    known = [operator.instruction for operator in OPERATORS.values() if operator.name != "identity"]
    listed = ", ".join(f"\u201c{words}\u201d" for words in (*known, PAINTING_INSTRUCTION, TINT_INSTRUCTION))
    return f"To be run in this folder, too. The bundled prior, {settings.prior}, knows: {listed}."


def _seconds(stages: Sequence[Stage], progress: Progress) -> float:
    return sum(progress[stage.key].seconds for stage in stages)


def _timings(stages: Sequence[Stage], progress: Progress) -> str:
    rows = []
    for stage in stages:
        record = progress[stage.key]
        runs = f", in {record.runs} runs" if record.runs > 1 else ""
        rows.append(table_row(f"{stage.title} ({stage.total} {stage.unit}{runs})", minutes(record.seconds)))
    total = table_row("In all", minutes(_seconds(stages, progress)))
    return "\n".join([*rows, total.replace("<tr>", '<tr class="total">')])
