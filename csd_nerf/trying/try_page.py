"""The contact sheet of what was tried: a picture, and a page with the command that chooses each."""

from __future__ import annotations

import html
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from csd_nerf.files import write_text
from csd_nerf.media import to_bytes
from csd_nerf.nerf.sheets import save_png, sheet
from csd_nerf.nerf.trying import Tried
from csd_nerf.pages import command_block, data_uri, filled, tables, versions

PACKAGES = ("csd-nerf", "nerfstudio", "torch")


def write_try_page(
    folder: Path, before: Float[Tensor, "n 3 h w"], tried: Sequence[Tried], *, method: str, scene: Path
) -> None:
    """Write `index.html` and `contact.png`: the views before, and below them every candidate.

    Args:
        folder: of the candidates, which are in folders by their numbers from 1.
        before: the views, 0..1.
        tried: the candidates.
        method: that edits by a chosen one.
        scene: as it was given.

    Raises:
        InputError: the file system refuses.
    """
    views = before.float().cpu()
    save_png(sheet([views, *(each.pictures for each in tried)]), folder / "contact.png")
    prompts = list(dict.fromkeys(each.candidate.prompt for each in tried))
    figures = [_figure("Before", views, "The views before any edit")]
    figures += [_section(number, each, method, scene, folder) for number, each in enumerate(tried, start=1)]
    page = filled(
        "csd_nerf.trying",
        f"{' / '.join(prompts)} - csd-nerf try",
        heading=" ".join(f"<q>{html.escape(prompt)}</q>" for prompt in prompts),
        intro=f"{len(tried)} candidates, tried on {len(views)} views. The scene itself is not edited yet: "
        "choose one by its command.",
        candidates="\n".join(figures),
        tables=tables({"Made with": versions(PACKAGES)}),
    )
    write_text(folder / "index.html", page)


def _section(number: int, tried: Tried, method: str, scene: Path, folder: Path) -> str:
    asked = tried.candidate
    title = f"{number}. {asked.prompt}, guidance {asked.text_guidance:g}, seed {asked.seed}"
    chosen = str(folder / str(number))
    command = shlex.join(["ns-train", method, "--load-dir", str(scene), "--pipeline.candidate", chosen])
    pictures = _figure(asked.in_words(), tried.pictures, f"The views after candidate {number}")
    return f"<h2>{html.escape(title)}</h2>\n{pictures}\n{command_block('Choose it', command)}"


def _figure(caption: str, pictures: Tensor, alt: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(sheet([pictures]))).save(buffer, "PNG")
    address = data_uri(buffer.getvalue(), ".png")
    return (
        f'<figure class="card"><img src="{address}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
