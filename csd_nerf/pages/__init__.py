"""Pages that show results: one HTML file with everything in it, which opens anywhere without a network.

A page is the frame that all pages share, with style and script, around the content (`page.html`) of its own
package, which may add to the style (`page.css`). What several pages have is here, too: before/after sliders,
commands with a button that copies them, tables.
"""

from __future__ import annotations

import base64
import html
import importlib.metadata
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
LINE_LENGTH = 84
SLIDER_LABEL = "Share of the picture that shows what was there before the edit, in percent"


def filled(package: str, title: str, **values: object) -> str:
    """A page from the template of a package.

    Args:
        package: that has a `page.html` with a `$name` for each of the values, and perhaps a `page.css`.
        title: of the window.
        values: HTML.
    """
    own, shared = files(package), files("csd_nerf.pages")
    content = Template(own.joinpath("page.html").read_text(encoding="utf8")).substitute(values)
    style = shared.joinpath("style.css").read_text(encoding="utf8")
    if own.joinpath("page.css").is_file():
        style += own.joinpath("page.css").read_text(encoding="utf8")
    script = shared.joinpath("script.js").read_text(encoding="utf8")
    frame = Template(shared.joinpath("frame.html").read_text(encoding="utf8"))
    return frame.substitute(title=html.escape(title), style=style, content=content, script=script)


def embedded(file: Path) -> str:
    """A file as an address that holds all of it."""
    return data_uri(file.read_bytes(), file.suffix)


def data_uri(content: bytes, suffix: str) -> str:
    """The address of a file's content, of a kind told by its ending."""
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def picture(address: str, role: str, alt: str) -> str:
    """A picture of a slider.

    Args:
        address: of the picture.
        role: `before` or `after`.
        alt: what it shows.
    """
    return f'<img class="{role}" src="{address}" alt="{html.escape(alt)}">'


def slider(before: str, after: str) -> str:
    """A before/after slider.

    Args:
        before, after: HTML elements of one shape that fill it, of these classes: see `picture`.
    """
    return f"""<div class="compare">
{before}
{after}
<span class="line"></span><span class="tag left">before</span><span class="tag right">after</span>
<input type="range" min="0" max="100" value="50" aria-label="{SLIDER_LABEL}">
</div>"""


def view_buttons(before: Sequence[str], after: Sequence[str]) -> str:
    """A row of buttons, beside a slider in one card, that show other views in it.

    Args:
        before, after: addresses of the pictures of each view; the slider has the first.
    """
    buttons = "\n".join(
        f'<button type="button" aria-pressed="{str(place == 1).lower()}" data-before="{source}">'
        f'<img src="{edited}" alt="View {place}"></button>'
        for place, (source, edited) in enumerate(zip(before, after, strict=True), start=1)
    )
    return f'<div class="views" role="group" aria-label="Views of the scene">\n{buttons}\n</div>'


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


def command_block(title: str, command: str) -> str:
    """A command with a button that copies it."""
    return (
        f'<div class="command"><p class="soft">{html.escape(title)}</p><button type="button">Copy</button>'
        f'<pre tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f"<code>{html.escape(command)}</code></pre></div>"
    )


def table_row(name: str, value: str) -> str:
    """A row of a table of two columns."""
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"


def tables(sections: Mapping[str, str]) -> str:
    """The tables at the foot of a page, side by side where there is room.

    Args:
        sections: rows of each (`table_row`) by its heading.
    """
    each = (
        f"<section>\n<h2>{html.escape(heading)}</h2>\n<table>\n{rows}\n</table>\n</section>"
        for heading, rows in sections.items()
    )
    return '<div class="tables">\n{}\n</div>'.format("\n".join(each))


def versions(packages: Iterable[str]) -> str:
    """Rows with the versions of packages and of Python."""
    rows = [(package, importlib.metadata.version(package)) for package in packages]
    return "\n".join(table_row(*row) for row in [*rows, ("Python", platform.python_version())])
