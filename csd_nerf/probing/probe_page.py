"""The page and the JSON of a probe."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from csd_nerf.display import minutes
from csd_nerf.editors.edit_page import PACKAGES, picture_address, picture_element
from csd_nerf.files import write_text
from csd_nerf.pages import command_block, filled, slider, table_row, tables, versions, wrapped
from csd_nerf.probing.clip_attributes import Seen
from csd_nerf.probing.drift import LEAST_DRIFT, LEVEL, Drift, attributes
from csd_nerf.probing.probing import SHOWN, Probed

LEAST_SHOWN = 192
"""Pixels along each side of a picture on the page; smaller ones are enlarged."""


def write_json(path: Path, probed: Probed, prompt: str, against: str, seen: Seen | None = None) -> None:
    """Write what was found, what a CLIP saw if one was asked, and every figure of the test.

    Raises:
        InputError: the file system refuses.
    """
    content = {
        "prompt": prompt,
        "against": against,
        "pictures": len(probed.before),
        "level": LEVEL,
        "least_drift": LEAST_DRIFT,
        "shared": probed.shared,
        "findings": [drift.in_words() for drift in probed.findings],
        "by_place": [{**asdict(drift), "found": drift in probed.findings} for drift in probed.places],
        "everywhere": [{**asdict(drift), "found": drift in probed.findings} for drift in probed.whole],
        "clip": None if seen is None else seen.clip,
        "attributes": [
            {**asdict(drift), "mean": drift.mean, "deviation": drift.deviation}
            for drift in (seen.drifts if seen else [])
        ],
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_probe_page(
    path: Path,
    probed: Probed,
    seen: Seen | None,
    *,
    prompt: str,
    against: str,
    intro: str,
    command: Sequence[str],
    settings: Mapping[str, object],
    seconds: Mapping[str, float],
) -> None:
    """Write the page of a probe, one file with everything in it.

    Args:
        path: of the page.
        probed: what came of it.
        seen: what a CLIP saw; None if none was asked.
        prompt, against: the instructions.
        intro: what was probed and how, in a sentence.
        command: that made it.
        settings: by their names.
        seconds: that each part of the work took.

    Raises:
        InputError: the page cannot be written.
    """
    heading = f"<q>{html.escape(prompt)}</q>" + (f" against <q>{html.escape(against)}</q>" if against else "")
    without = probed.after - probed.change  # by the other instruction
    rows = {
        "Before": probed.before,
        "Each one's change": grey_change(probed.change),
        "What the kernel takes from the others": grey_change(probed.common),
        "What is its own": grey_change(probed.change - probed.common),
    }
    page = filled(
        "csd_nerf.probing",
        f"{prompt} - csd-nerf probe",
        heading=heading,
        intro=html.escape(intro),
        verdict=verdict(probed),
        maps="\n".join(maps(probed.change)),
        slider=slider(
            picture_element(_row(without if against else probed.before), "before"),
            picture_element(_row(probed.after), "after"),
        ),
        shared=f"{probed.shared:.0%} of the changes, by their squares in latent space, is the same in all "
        "pictures. Grey is no change.",
        rows="\n".join(_figure(caption, _row(pictures)) for caption, pictures in rows.items()),
        attributes=attribute_list(seen),
        command=command_block("It made this page, where it was run", wrapped(command)),
        tables=tables(
            {
                "By place, beyond what colours explain": _figures(probed.places),
                "Whole pictures": _figures(probed.whole),
                "Settings": "\n".join(table_row(name, str(value)) for name, value in settings.items()),
                "Time taken": "\n".join(table_row(title, minutes(took)) for title, took in seconds.items()),
                "Made with": versions(PACKAGES),
            }
        ),
    )
    write_text(path, page)


def verdict(probed: Probed) -> str:
    """What was found, as HTML."""
    thresholds = (
        f"Reported is a drift of at least {LEAST_DRIFT:g} of 1 that flipping the signs of pictures brings "
        f"about in less than {LEVEL:.0%} of patterns."
    )
    findings = probed.findings
    if not findings:
        largest = max((abs(drift.mean) for drift in probed.places), default=0.0)
        return (
            f"<p>Nothing: beyond what colours explain, no place drifts by more than {largest:.3f}.</p>"
            f'<p class="soft">{thresholds}</p>'
        )
    beside = " against the rest of the picture, beyond what its colours explain"
    items = "\n".join(
        f"<li>{html.escape(drift.in_words().capitalize())}{beside if drift in probed.places else ''} "
        f"(p = {drift.p:.4f})</li>"
        for drift in findings
    )
    return f'<ul>\n{items}\n</ul>\n<p class="soft">{thresholds}</p>'


def attribute_list(seen: Seen | None) -> str:
    """What CLIP saw of each attribute, as HTML."""
    if seen is None:
        return '<p class="soft">Nobody was asked: no <code>--clip</code> was given.</p>'
    rows = "\n".join(
        table_row(f"{drift.text} \u2212 {drift.opposite}", drift.in_figures()) for drift in seen.drifts
    )
    return (
        f"<table>\n{rows}\n</table>\n"
        '<p class="soft">Change of the cosine with the first text less that with the second, mean over the '
        f"pictures and deviation from picture to picture; * is what flipped signs bring about in less than "
        f"{LEVEL:.0%} of patterns. What the prompt names is meant to move. By {html.escape(seen.clip)}.</p>"
    )


def maps(change: Float[Tensor, "n 3 h w"]) -> list[str]:
    """The mean change of each attribute as figures: grey is none, white or black the most there is."""
    mean = attributes(change).mean(0)
    titles = ("Brightness", "Red beyond brightness", "Blue beyond brightness")
    return [
        _figure(
            f"{title}: {plane.min():+.2f} to {plane.max():+.2f}",
            grey_change((plane / plane.abs().max().clamp(min=1e-6)).expand(1, 3, *plane.shape))[0],
        )
        for title, plane in zip(titles, mean, strict=True)
    ]


def grey_change(change: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Changes as pictures in which grey is none."""
    return (0.5 + change / 2).clamp(0, 1)


def _row(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "3 h width"]:
    return torch.cat(list(pictures[:SHOWN]), dim=2)


def _figure(caption: str, picture: Float[Tensor, "3 h w"]) -> str:
    scale = max(-(-LEAST_SHOWN // picture.shape[1]), 1)
    large = functional.interpolate(picture[None], scale_factor=float(scale), mode="nearest")[0]
    words = html.escape(caption)
    return (
        f'<figure class="card"><img src="{picture_address(large)}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _figures(drifts: Sequence[Drift]) -> str:
    return "\n".join(
        table_row(f"{drift.region}: {drift.attribute}", f"{drift.mean:+.3f} (p = {drift.p:.4f})")
        for drift in drifts
    )
