"""What CLIP sees drift in pictures that no colour tells: day or night, young or old."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import InputError, check
from csd_nerf.evaluation.clip import ClipModel, load_clip, text_similarity
from csd_nerf.evaluation.weights import Unavailable
from csd_nerf.probing.drift import LEVEL, chances

SEPARATOR = "|"
"""Between the two texts of an attribute on a command line."""

USUAL_PAIRS = (
    ("a photo taken by day", "a photo taken at night"),
    ("a photo taken in summer", "a photo taken in winter"),
    ("a photo", "a painting"),
    ("a sharp photo", "a blurry photo"),
    ("a new and clean thing", "an old and dirty thing"),
    ("a happy person", "a sad person"),
    ("a young person", "an old person"),
    ("a man", "a woman"),
    ("a person with light skin", "a person with dark skin"),
)
"""A text and its opposite."""


@dataclass(frozen=True)
class AttributeDrift:
    """How far pictures move from what one text says to what its opposite says, or back.

    Args:
        text, opposite: of the attribute.
        before, after: mean score, see `scores`, without the edit and with it.
        each: change of the score of every picture.
        p: how probable it is by chance, see `chances`; over all attributes together.
    """

    text: str
    opposite: str
    before: float
    after: float
    each: tuple[float, ...]
    p: float

    @property
    def mean(self) -> float:
        """Change of the score, over the pictures."""
        return sum(self.each) / len(self.each)

    @property
    def deviation(self) -> float:
        """Standard deviation of the change from picture to picture."""
        return torch.tensor(self.each, dtype=torch.float64).std().item()

    @property
    def regular(self) -> bool:
        """Whether chance seldom brings about as regular a change."""
        return self.p < LEVEL

    def in_words(self) -> str:
        """As a sentence: `away from "a man", towards "a woman"`."""
        away, towards = (self.opposite, self.text) if self.mean > 0 else (self.text, self.opposite)
        return f'away from "{away}", towards "{towards}"'

    def in_figures(self) -> str:
        """`+0.012, deviation 0.004, p = 0.0010`, with a star where it is regular."""
        star = " *" if self.regular else ""
        return f"{self.mean:+.4f}, deviation {self.deviation:.4f}, p = {self.p:.4f}{star}"


@dataclass(frozen=True)
class Seen:
    """What a CLIP saw.

    Args:
        clip: its description.
        drifts: of the attributes, the most regular first.
    """

    clip: str
    drifts: list[AttributeDrift]


def in_lines(seen: Seen | None) -> list[str]:
    """What to print of it; None is no CLIP."""
    if seen is None:
        return ["CLIP's attributes were not looked at: no --clip was given"]
    return [f"CLIP sees the pictures move {drift.in_words()}" for drift in seen.drifts if drift.regular] or [
        "CLIP sees no attribute move beyond chance"
    ]


def scores(clip: ClipModel, pictures: Float[Tensor, "n 3 h w"], text: str, opposite: str) -> Tensor:
    """`cos(E(picture), E(text)) - cos(E(picture), E(opposite))` of each picture, (n,), -2..2.

    Of the usual CLIPs, which were trained at a temperature of 1/100, a difference of 0.01 is a factor of e in
    how much likelier than the opposite they hold the text to be.

    Args:
        clip: what is asked.
        pictures: RGB in 0..1.
        text, opposite: of the attribute.
    """
    return _scores(clip, clip.images(pictures), text, opposite)


def attribute_drifts(
    clip: ClipModel,
    before: Float[Tensor, "n 3 h w"],
    after: Float[Tensor, "n 3 h w"],
    pairs: tuple[tuple[str, str], ...],
) -> list[AttributeDrift]:
    """Drift of every attribute, the most regular first.

    Args:
        clip: what is asked.
        before: pictures without the edit, or by the other instruction, RGB in 0..1.
        after: the same pictures with it.
        pairs: texts and their opposites, at least one.
    """
    embeddings = clip.images(before), clip.images(after)
    both = [[_scores(clip, pictures, *pair) for pair in pairs] for pictures in embeddings]
    without, with_edit = (torch.stack(columns, dim=1) for columns in both)  # (n, k)
    change = with_edit - without
    drifts = [
        AttributeDrift(*pair, without[:, k].mean().item(), with_edit[:, k].mean().item(), tuple(each), p)
        for k, (pair, each, p) in enumerate(
            zip(pairs, change.T.tolist(), chances(change).tolist(), strict=True)
        )
    ]
    return sorted(drifts, key=lambda drift: (drift.p, -abs(drift.mean)))


def _scores(clip: ClipModel, embeddings: Tensor, text: str, opposite: str) -> Tensor:
    return text_similarity(embeddings, clip.text(text)) - text_similarity(embeddings, clip.text(opposite))


def as_pairs(attributes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Attributes as they are given, `TEXT | OPPOSITE`, as pairs of texts.

    Raises:
        InputError: it is not of that form.

    Example:
        >>> as_pairs(("a cat | a dog",))
        (('a cat', 'a dog'),)
    """
    pairs = []
    for given in attributes:
        texts = [text.strip() for text in given.split(SEPARATOR)]
        check(
            len(texts) == 2 and all(texts) and texts[0] != texts[1],
            "--attribute",
            expected=f"two texts with {SEPARATOR} between them",
            got=repr(given),
            hint=f'write it as --attribute "a smiling face {SEPARATOR} a serious face"',
        )
        pairs.append((texts[0], texts[1]))
    return tuple(pairs)


def load_attribute_clip(name: str, device: torch.device | str) -> ClipModel:
    """The CLIP that attributes are scored by.

    Args:
        name: hub id, which is fetched, or folder, in transformers' format.
        device: where it runs.

    Raises:
        InputError: there is none of that name.
    """
    try:
        return load_clip(name, device=device, download=True)
    except Unavailable as missing:
        raise InputError(
            f"{name} is no CLIP that can be had",
            expected="a hub id such as openai/clip-vit-large-patch14, or a folder in transformers' format",
            got=missing.reason,
            hint="check it, or leave out --clip: all but CLIP's attributes is probed without",
        ) from missing
