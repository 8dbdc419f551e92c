"""Exact image operators: the teachers of the bundled prior and the ground truth of evaluations.

Every operator is deterministic and maps RGB in 0..1 of shape (..., 3, H, W) to the same shape and range.
An edit model that has learnt an operator's instruction can therefore be measured against the operator's
output, in a photo as in a rendered scene.

>>> photo = torch.rand(3, 64, 64)
>>> night = OPERATORS["night"].apply(photo)
>>> night.shape
torch.Size([3, 64, 64])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from csd_nerf.errors import InputError

Image = Float[Tensor, "*batch 3 height width"]
PerPicture = Float[Tensor, " *batch"]

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Rec. 601 luma of R, G, B."""

SKETCH_BLUR_SIGMA = 2.5
"""Width of the sketch's strokes: standard deviation of the blur, in pixels of the picture it is given."""

PAINTING_INSTRUCTION = "make it a cubist painting"
"""Canonical wording of the painting style. It has no exact operator: its teacher was a style network."""

TINT_INSTRUCTION = "recolor it in a vivid tint"
"""Ambiguous on purpose: any of the four hues of `TINT_HUES` is a right answer."""

TINT_HUES: dict[str, float] = {"red": 0.0, "chartreuse": 90.0, "cyan": 180.0, "violet": 270.0}
"""Hue in degrees, as `hue_and_chroma` measures it, of each answer to `TINT_INSTRUCTION`."""

_TINT_COLORS = {
    "red": (1.0, 0.0, 0.0),
    "chartreuse": (0.5, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "violet": (0.5, 0.0, 1.0),
}
_TINT_HIGHLIGHT = 0.95


@dataclass(frozen=True)
class Operator:
    """An exact edit and the instruction that asks for it."""

    name: str
    instruction: str
    apply: Callable[[Tensor], Tensor]
    """RGB (..., 3, H, W) in 0..1 to the same shape and range."""


def sketch(image: Image) -> Image:
    """Pencil drawing: luma colour-dodged by its blurred negative, darkened where the photo is dark."""
    luma = _luma(image)
    dodged = luma / _blur(luma, SKETCH_BLUR_SIGMA).clamp(min=1e-3)  # 1 - blur(1 - l) = blur(l)
    lines = dodged.clamp(0, 1) ** 2.2 * (0.75 + 0.25 * luma)
    return lines.expand_as(image).clamp(0, 1)


def sepia(image: Image) -> Image:
    """Old photograph: the usual sepia matrix, then a warm filter."""
    matrix = image.new_tensor(((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131)))
    toned = torch.einsum("oc,...chw->...ohw", matrix, image).clamp(0, 1)
    return toned * _rgb(image, 0.92, 0.80, 0.62)


def night(image: Image) -> Image:
    """Moonlight: less colour, deeper shadows, a blue cast."""
    muted = (0.55 * image + 0.45 * _luma(image)) ** 1.35
    return (muted * _rgb(image, 0.28, 0.38, 0.72) + _rgb(image, 0.0, 0.01, 0.06)).clamp(0, 1)


def winter(image: Image) -> Image:
    """Snow: colours fade, everything is lifted, bright parts are drawn to white, a cold cast."""
    luma = _luma(image)
    lifted = 1 - 0.62 * (1 - (0.25 * image + 0.75 * luma))
    snow = 0.55 * torch.sigmoid(12 * (luma - 0.42))
    return (torch.lerp(lifted, torch.ones_like(lifted), snow) * _rgb(image, 0.92, 0.98, 1.06)).clamp(0, 1)


def autumn(image: Image) -> Image:
    """Autumn: greens turn orange, everything else warmer."""
    red, green, blue = image.unbind(-3)
    greenness = torch.sigmoid(24 * (green - torch.maximum(0.92 * red, blue) - 0.04)).unsqueeze(-3)
    luma = _luma(image)
    leaves = luma * _rgb(image, 1.75, 0.85, 0.15) + _rgb(image, 0.08, 0.02, 0.0)
    rest = image * _rgb(image, 1.12, 0.90, 0.58) + _rgb(image, 0.06, 0.02, 0.0)
    return torch.lerp(rest, leaves, greenness).clamp(0, 1)


def identity(image: Image) -> Image:
    """The picture as it is."""
    return image


def tint(image: Image, hue_name: str) -> Image:
    """Duotone of the luma: black, over one of the pure hues of `TINT_HUES`, to near white.

    Raises `InputError` when `hue_name` is not one of `TINT_HUES`.
    """
    if hue_name not in _TINT_COLORS:
        raise InputError(
            "unknown hue",
            expected=f"one of {', '.join(_TINT_COLORS)}",
            got=repr(hue_name),
            hint="take a name from csd_nerf.scenes.operators.TINT_HUES",
        )
    color = _rgb(image, *_TINT_COLORS[hue_name])
    luma = _luma(image)
    shadows = color * (2 * luma).clamp(max=1)
    highlights = (_TINT_HIGHLIGHT - color) * (2 * luma - 1).clamp(min=0)
    return (shadows + highlights).clamp(0, 1)


def hue_and_chroma(image: Image) -> tuple[PerPicture, PerPicture]:
    """Mean hue in degrees 0..360 and mean chroma in 0..1 of each picture.

    Hue and chroma are the polar form of (R - (G + B) / 2, sqrt(3) / 2 (G - B)). The mean hue is the
    circular mean over pixels, weighted by chroma, so that grey pixels have no say.

    >>> hue, chroma = hue_and_chroma(tint(torch.full((3, 8, 8), 0.5), "cyan"))
    >>> round(hue.item()), round(chroma.item(), 2)
    (180, 1.0)
    """
    red, green, blue = image.unbind(-3)
    alpha = red - (green + blue) / 2
    beta = math.sqrt(3) / 2 * (green - blue)
    hue = torch.rad2deg(torch.atan2(beta.mean((-2, -1)), alpha.mean((-2, -1)))) % 360
    return hue, torch.hypot(alpha, beta).mean((-2, -1))


def circular_deviation(hues: Tensor) -> float:
    """Circular standard deviation `sqrt(-2 ln R)`, `R = |mean exp(i hue)|`, all in degrees (Mardia 1972).

    >>> round(circular_deviation(torch.tensor([350.0, 10.0])), 1)
    10.0
    """
    resultant = torch.exp(1j * torch.deg2rad(hues.double())).mean().abs().clamp(1e-9, 1)
    return torch.rad2deg((-2 * resultant.log()).sqrt()).item()


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("sketch", "turn it into a pencil sketch", sketch),
        Operator("sepia", "make it an old sepia photograph", sepia),
        Operator("night", "make it night", night),
        Operator("winter", "make it winter", winter),
        Operator("autumn", "make it autumn", autumn),
        Operator("identity", "keep it as it is", identity),
    )
}
"""The exact operators by name, each with its canonical instruction."""

KNOWN_INSTRUCTIONS = (
    *(operator.instruction for operator in OPERATORS.values()),
    PAINTING_INSTRUCTION,
    TINT_INSTRUCTION,
)
"""What the bundled prior `tiny-instruct` was taught, each in its canonical wording."""

CAPTIONS: dict[str, str] = {
    "sketch": "a pencil sketch",
    "sepia": "an old sepia photograph",
    "night": "a photo at night",
    "winter": "a photo in winter",
    "autumn": "a photo in autumn",
    "identity": "a photo",
    "painting": "a cubist painting",
    "tint": "a photo in a vivid tint",
}
"""What a picture is once an edit has been made to it, in words for a text-to-image model; the identity's
describes the source."""

TINTS: dict[str, Callable[[Tensor], Tensor]] = {name: partial(tint, hue_name=name) for name in TINT_HUES}
"""The four right answers to `TINT_INSTRUCTION` by name of the hue."""


def answers_to(instruction: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """The right answers to an instruction, by name: none, one, or for an ambiguous one several.

    >>> list(answers_to("make it night")), len(answers_to(TINT_INSTRUCTION)), answers_to("make it better")
    (['night'], 4, {})
    """
    if instruction == TINT_INSTRUCTION:
        return dict(TINTS)
    return {
        name: operator.apply for name, operator in OPERATORS.items() if operator.instruction == instruction
    }


def _rgb(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    return like.new_tensor((red, green, blue)).reshape(3, 1, 1)


def _luma(image: Tensor) -> Tensor:
    return (image * _rgb(image, *LUMA_WEIGHTS)).sum(-3, keepdim=True)  # (..., 1, H, W)


def _blur(plane: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (..., 1, H, W), edges replicated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=plane.dtype, device=plane.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = F.pad(plane.reshape(-1, 1, *plane.shape[-2:]), (radius,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel.reshape(1, 1, 1, -1)), kernel.reshape(1, 1, -1, 1))
    return flat.reshape(plane.shape)
