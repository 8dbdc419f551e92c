"""The page that shows edits which followed one another."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from csd_nerf.files import write_text
from csd_nerf.nerf.chain import Link
from csd_nerf.nerf.closing_words import evaluate_command, viewer_command
from csd_nerf.pages import command_block, embedded, filled, picture, slider, tables, versions

PACKAGES = ("csd-nerf", "nerfstudio", "torch")


def write_history_page(path: Path, links: Sequence[Link]) -> None:
    """Write the page, one file with everything in it.

    Args:
        path: of the page.
        links: the first is the scene, or what is known first; the last the run that was asked for.

    Raises:
        InputError: it cannot be written.
    """
    edits = [link for link in links if link.prompt]
    last = edits[-1].prompt if edits else "No edit yet"
    intro = f"{len(edits)} edits after one another, of {links[0].folder}"
    page = filled(
        "csd_nerf.history",
        f"{last} - csd-nerf history",
        heading=f"<q>{html.escape(last)}</q>",
        intro=html.escape(intro + (", which is gone." if links[0].gone else ".")),
        edits="\n".join(_section(number, link) for number, link in enumerate(edits, start=1)),
        tables=tables({"Made with": versions(PACKAGES)}),
    )
    write_text(path, page)


def _section(number: int, link: Link) -> str:
    """An edit: its pictures, and the commands that open it."""
    files = link.picture("before.png"), link.picture("after.png")
    shown = '<p class="soft">It has not come to its end, and has no pictures yet.</p>'
    if files[0] and files[1]:
        alts = ("before", f'after "{link.prompt}"')
        before, after = (
            picture(embedded(file), role, f"Views of the scene {alt}")
            for file, role, alt in zip(files, ("before", "after"), alts, strict=True)
            if file
        )
        shown = f'<div class="card">\n{slider(before, after)}\n</div>'
    facts = [link.method, *([f"strength {link.strength:g}"] if link.strength < 1 else [])]
    facts += [link.cost.in_words()] if link.cost else []
    return "\n".join(
        (
            f"<h2>{number}. {html.escape(link.prompt)}</h2>",
            f'<p class="soft">{html.escape(", ".join(facts))}</p>',
            shown,
            command_block("Look at it", viewer_command(link.folder)),
            command_block("Measure it", evaluate_command(link.folder)),
        )
    )
