"""The page that shows a demo: one HTML file with everything in it, which opens anywhere without a network."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from csd_nerf.demo.pictures import FACTS
from csd_nerf.demo.settings import Progress, Settings, write_text
from csd_nerf.demo.stages import EDIT_RUN, PICTURES, SCENE_RUN, Stage
from csd_nerf.display import minutes

PACKAGES = ("csd-nerf", "nerfstudio", "torch", "diffusers", "transformers")
MEDIA_TYPES = {".png": "image/png", ".mp4": "video/mp4"}
LINE_LENGTH = 84

SHEET_GAP = 4
"""Pixels between the rows of a sheet, as `csd_nerf.nerf.pictures.sheet` leaves them."""


def write_page(
    folder: Path, settings: Settings, stages: Sequence[Stage], progress: Progress, again: str
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
    before, after = ([_embedded(pictures / f"{row}-{n}.png") for n in numbers] for row in ("before", "after"))
    commands = [(stage.title, wrapped(stage.command())) for stage in stages]
    write_text(folder / "commands.sh", _script(commands, again))
    template = files("csd_nerf.demo").joinpath("page.html").read_text(encoding="utf8")
    page = Template(template).substitute(
        prompt=html.escape(settings.prompt),
        intro=html.escape(_intro(settings)),
        first_before=before[0],
        first_after=after[0],
        thumbnails="\n".join(map(_thumbnail, numbers, before, after)),
        video=_embedded(pictures / "turntable.mp4"),
        figures=_figures(settings, stages, progress, facts),
        course=_course(folder, before[0], after[0], settings),
        columns=len(numbers),
        truth=_truth(pictures, facts, after),
        commands="\n".join(_command(*command) for command in commands),
        next_intro=html.escape(_next_intro(settings)),
        next_commands="\n".join(_command(*command) for command in _next_commands(settings)),
        timings=_timings(stages, progress),
        versions=_versions(),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def wrapped(command: Sequence[str]) -> str:
    """A command for the shell, on lines of readable length that begin with an option."""
    units: list[str] = []
    for word in map(shlex.quote, command):
        # A value stays with its option.
        if units and units[-1].startswith("--") and not word.startswith("--"):
            units[-1] += f" {word}"
        else:
            units.append(word)
    lines = [units[0]]
    for unit in units[1:]:
        if len(lines[-1]) + len(unit) < LINE_LENGTH or not unit.startswith("--"):
            lines[-1] += f" {unit}"
        else:
            lines.append(f"  {unit}")
    return " \\\n".join(lines)


def _embedded(file: Path) -> str:
    return _data_uri(file.read_bytes(), MEDIA_TYPES[file.suffix])


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _intro(settings: Settings) -> str:
    scene = "A still life, rendered from a circle of cameras," if settings.data is None else "A capture"
    return (
        f"{scene} was learned as a NeRF, then changed by these words with Collaborative Score Distillation: "
        "a diffusion model that edits pictures proposes the change, the views of the scene share its scores "
        "so that they agree on one edit, and the edit goes into the scene itself."
    )


def _thumbnail(number: int, before: str, after: str) -> str:
    pressed = "true" if number == 1 else "false"
    image = f'<img src="{after}" alt="View {number}">'
    return f'<button type="button" aria-pressed="{pressed}" data-before="{before}">{image}</button>'


def _figures(settings: Settings, stages: Sequence[Stage], progress: Progress, facts: dict[str, Any]) -> str:
    figures = [
        (minutes(_seconds(stages, progress)), f"on {os.cpu_count()} processor cores"),
        (str(settings.edit_steps), "steps of editing"),
    ]
    if "psnr" in facts:
        gain = facts["psnr"]["after"] - facts["psnr"]["before"]
        figures.append((f"{gain:+.1f} dB", "towards the exact edit (PSNR)"))
    return "\n".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in figures)


def _course(folder: Path, before: str, after: str, settings: Settings) -> str:
    """The first view as the edit goes on, from the sheets that the edit left."""
    pictures = [("before", before)]
    for sheet in sorted((folder / EDIT_RUN / "pictures").glob("step-*.png")):
        found = re.fullmatch(r"step-(\d+)", sheet.stem)
        if found and int(found.group(1)) < settings.edit_steps:
            pictures.append((f"{int(found.group(1))} steps", _after_of_sheet(sheet, folder)))
    pictures.append((f"{settings.edit_steps} steps", after))
    return "\n".join(
        f'<figure><img src="{picture}" alt="View 1"><figcaption>{when}</figcaption></figure>'
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
    return _data_uri(buffer.getvalue(), MEDIA_TYPES[".png"])


def _truth(pictures: Path, facts: dict[str, Any], after: Sequence[str]) -> str:
    """The edited views above what they should be, where that is known."""
    if "psnr" not in facts:
        return ""
    psnr = facts["psnr"]
    truth = [_embedded(pictures / f"truth-{number}.png") for number in range(1, facts["views"] + 1)]
    rows = [
        (f"The scene after the edit: {psnr['after']:.1f} dB (before it: {psnr['before']:.1f} dB)", after),
        ("The scene's own pictures under the exact operator that the diffusion model learned from", truth),
    ]
    cells = "\n".join(
        f"<p>{caption}</p>\n" + "\n".join(f'<img src="{image}" alt="">' for image in images)
        for caption, images in rows
    )
    return f'<h2>Against the exact edit</h2>\n<div class="truth">\n{cells}\n</div>\n'


def _command(title: str, command: str) -> str:
    return (
        f'<div class="command"><p class="soft">{html.escape(title)}</p><button type="button">Copy</button>'
        f"<pre><code>{html.escape(command)}</code></pre></div>"
    )


def _script(commands: Sequence[tuple[str, str]], again: str) -> str:
    lines = ["#!/bin/sh", f"# The commands of `{again}`, one by one.", "set -e", 'cd "$(dirname "$0")"', ""]
    for title, command in commands:
        lines += [f"# {' '.join(title.split())}", command, ""]
    return "\n".join(lines)


def _next_commands(settings: Settings) -> list[tuple[str, str]]:
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


def _next_intro(settings: Settings) -> str:
    if settings.prior != "tiny-instruct":
        return "To be run in this folder, too."
    from csd_nerf.scenes.operators import OPERATORS, PAINTING_INSTRUCTION, TINT_INSTRUCTION

    known = [operator.instruction for operator in OPERATORS.values() if operator.name != "identity"]
    listed = ", ".join(f"\u201c{words}\u201d" for words in (*known, PAINTING_INSTRUCTION, TINT_INSTRUCTION))
    return f"To be run in this folder, too. The bundled prior, tiny-instruct, knows: {listed}."


def _seconds(stages: Sequence[Stage], progress: Progress) -> float:
    return sum(progress[stage.key].seconds for stage in stages)


def _timings(stages: Sequence[Stage], progress: Progress) -> str:
    rows = []
    for stage in stages:
        record = progress[stage.key]
        runs = f", in {record.runs} runs" if record.runs > 1 else ""
        rows.append(_row(f"{stage.title} ({stage.total} {stage.unit}{runs})", minutes(record.seconds)))
    total = _row("In all", minutes(_seconds(stages, progress)))
    return "\n".join([*rows, total.replace("<tr>", '<tr class="total">')])


def _versions() -> str:
    rows = [(package, importlib.metadata.version(package)) for package in PACKAGES]
    return "\n".join(_row(*row) for row in [*rows, ("Python", platform.python_version())])


def _row(name: str, value: str) -> str:
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
