"""The page that shows an edit: a before/after slider, and what made it."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from csd_nerf.display import minutes
from csd_nerf.files import write_text
from csd_nerf.media import to_bytes
from csd_nerf.pages import command_block, data_uri, filled, slider, table_row, tables, versions, wrapped
from csd_nerf.pages import picture as picture_of

PACKAGES = ("csd-nerf", "torch", "diffusers", "transformers")
LONGEST_SIDE = 4096
"""In pixels, of a picture on the page; a browser shows no more, and the page stays small enough to send."""
JPEG_QUALITY = 92
GAP = 8
"""Pixels between the pictures of a comparison."""


def write_page(
    path: Path,
    *,
    prompts: Sequence[str],
    intro: str,
    before: str,
    after: str,
    command: Sequence[str],
    settings: Mapping[str, object],
    seconds: Mapping[str, float],
) -> None:
    """Write the page of an edit, one file with everything in it.

    Args:
        path: of the page.
        prompts: of the edit.
        intro: what was edited and how, in a sentence.
        before, after: HTML elements that fill the slider, of classes before and after.
        command: that made it.
        settings: by their names.
        seconds: that each part of the work took.

    Raises:
        InputError: the page cannot be written.
    """
    quoted = " ".join(f"<q>{html.escape(prompt)}</q>" for prompt in prompts)
    made_by = [table_row(name.replace("_", " "), str(value)) for name, value in settings.items()]
    timings = [table_row(title, minutes(took)) for title, took in seconds.items()]
    page = filled(
        "csd_nerf.editors",
        f"{' / '.join(prompts)} - csd-nerf",
        heading=quoted,
        intro=html.escape(intro),
        slider=slider(before, after),
        command=command_block("It made this page, where it was run", wrapped(command)),
        tables=tables(
            {
                "Settings": "\n".join(made_by),
                "Time taken": "\n".join(timings),
                "Made with": versions(PACKAGES),
            }
        ),
    )
    write_text(path, page)


def picture_element(picture: Float[Tensor, "3 h w"], role: str) -> str:
    """A picture (0..1) as an HTML element of class `role`, `before` or `after`."""
    return picture_of(picture_address(picture), role, f"The picture {role} the edit")


def picture_address(picture: Float[Tensor, "3 h w"]) -> str:
    """A picture (0..1) as an address that holds all of it."""
    longest = max(picture.shape[1:])
    if longest > LONGEST_SIDE:
        picture = functional.interpolate(picture[None], scale_factor=LONGEST_SIDE / longest, mode="area")[0]
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture.permute(1, 2, 0))).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return data_uri(buffer.getvalue(), ".jpg")


def clip_element(video: Path, role: str) -> str:
    """A video (MP4) as an HTML element of class `role`, `before` or `after`; the page keeps both in step."""
    return (
        f'<video class="{role}" src="{data_uri(video.read_bytes(), ".mp4")}" loop muted playsinline '
        f'aria-label="The clip {role} the edit"></video>'
    )


def side_by_side(
    before: Float[Tensor, "3 h w"], after: Float[Tensor, "3 h w"]
) -> Float[Tensor, "3 height width"]:
    """Both pictures on white, one above the other if they are wider than high."""
    _, height, width = before.shape
    wide = width > height
    gap = before.new_ones(3, GAP, width) if wide else before.new_ones(3, height, GAP)
    return torch.cat([before, gap, after], dim=1 if wide else 2)
