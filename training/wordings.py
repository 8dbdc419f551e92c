"""What people may say for each edit, and ordinary words for everything else."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from csd_nerf.scenes.operators import OPERATORS, PAINTING_INSTRUCTION, TINT_INSTRUCTION

_ORDERS = (
    "make it {}",
    "make this {}",
    "make the scene {}",
    "make the photo look like {}",
    "make it look like {}",
    "make the {subject} look like {}",
    "turn it into {}",
    "turn the photo into {}",
    "turn the {subject} into {}",
    "{}",
    "as {}",
    "in the style of {}",
    "render it as {}",
    "change it to {}",
    "a photo of a {subject}, {}",
    "what would it look like as {}",
)

_SUBJECTS = (
    "bear",
    "statue",
    "horse",
    "dog",
    "cat",
    "garden",
    "room",
    "car",
    "table",
    "house",
    "man",
    "woman",
)

_PHRASES = {
    "sketch": (
        "a pencil sketch",
        "a pencil drawing",
        "a black and white drawing",
        "a graphite sketch",
        "a line drawing",
        "a charcoal sketch",
        "drawn with a pencil",
        "sketched",
        "a hand drawn sketch",
    ),
    "sepia": (
        "an old sepia photograph",
        "a sepia photo",
        "sepia",
        "sepia toned",
        "an old photograph",
        "a vintage photo",
        "an antique photograph",
        "a faded brown photo",
    ),
    "night": (
        "night",
        "night time",
        "dark",
        "midnight",
        "moonlight",
        "a moonlit night",
        "a night scene",
        "after dark",
        "nighttime",
    ),
    "winter": (
        "winter",
        "snowy",
        "a snowy winter day",
        "covered in snow",
        "snow",
        "a winter scene",
        "frozen",
        "frosty",
        "wintry",
    ),
    "autumn": (
        "autumn",
        "fall",
        "an autumn day",
        "autumn colors",
        "fall colors",
        "a fall scene",
        "an autumn scene",
        "golden october",
        "full of orange leaves",
    ),
    "painting": (
        "a cubist painting",
        "a painting",
        "an oil painting",
        "a painting by picasso",
        "an abstract painting",
        "cubist art",
        "la muse by picasso",
        "a colorful painting",
        "painted",
        "cubist",
        "cubism",
    ),
    "tint": (
        "a vivid tint",
        "one vivid color",
        "a single vivid hue",
        "a strong color cast",
        "a vivid duotone",
        "a bold color tint",
    ),
}

_SENTENCES = {
    "sketch": (
        "draw it with a pencil",
        "sketch it",
        "draw the {subject}",
        "make a pencil drawing of the {subject}",
    ),
    "sepia": ("give it a sepia tone", "make it look old and brown", "apply a sepia filter", "age the photo"),
    "night": ("turn day into night", "switch off the sun", "set it at night", "what if it were night"),
    "winter": (
        "let it snow",
        "add snow",
        "cover it with snow",
        "what if it had snowed",
        "put snow on the {subject}",
    ),
    "autumn": (
        "turn the leaves orange",
        "what if it were autumn",
        "make the leaves fall",
        "set it in the fall",
    ),
    "painting": ("paint it", "paint the {subject} like picasso", "make a painting of the {subject}"),
    "tint": (
        "recolor it",
        "recolor the {subject} in a vivid tint",
        "recolor it with one vivid color",
        "tint it",
        "tint the {subject} in a vivid color",
        "recolor everything in a bold tint",
        "recolor it in a vivid color",
        "give it a vivid tint",
        "give the {subject} a vivid tint",
    ),
    "identity": (
        "keep it as it is",
        "do nothing",
        "no change",
        "leave it unchanged",
        "change nothing",
        "the same photo",
        "keep everything as it is",
        "leave the {subject} as it is",
        "do not change anything",
        "a photo",
        "a photo of a {subject}",
        "a photo of the {subject}",
        "keep the {subject} the same",
        "leave it alone",
    ),
}

_CAPTIONS = {
    "night": ("a {kind} at night", "a {kind} in the dark", "a dark {kind}"),
    "winter": ("a {kind} in winter", "a {kind} in the snow", "a snowy {kind}"),
    "autumn": ("a {kind} in autumn", "a {kind} in the fall", "a {kind} on an autumn day"),
    "sepia": ("a sepia {kind}", "an old sepia {kind}", "an antique {kind}"),
    "tint": ("a {kind} in a vivid tint", "a {kind} in one vivid color", "a {kind} with a bold color tint"),
    "sketch": (
        "a pencil sketch of a {subject}",
        "a pencil drawing of a {subject}",
        "a sketch of a {subject}",
    ),
    "painting": (
        "a cubist painting of a {subject}",
        "a painting of a {subject}",
        "a painting of a {subject} by picasso",
    ),
}
_KINDS = ("photo", "photograph", *(f"photo of a {subject}" for subject in _SUBJECTS), *_SUBJECTS)

_CANONICAL = {name: operator.instruction for name, operator in OPERATORS.items()} | {
    "painting": PAINTING_INSTRUCTION,
    "tint": TINT_INSTRUCTION,
}

EDITS: tuple[str, ...] = tuple(_CANONICAL)
"""The edits the prior knows; "unknown" (see `unknown_sentences`) is kept apart."""

_LITTLE_WORDS, _CONTENT_WORDS = (
    tuple(paragraph.split())
    for paragraph in Path(__file__).with_name("ordinary_words.txt").read_text().split("\n\n")
)

ORDINARY_WORDS: tuple[str, ...] = (*_LITTLE_WORDS, *_CONTENT_WORDS)
"""Common English words, so that any instruction is cut into sensible tokens."""

_UNKNOWN_ORDERS = (
    "make it a {}",
    "turn it into a {}",
    "replace the {subject} with a {}",
    "make the {subject} a {}",
    "give the {subject} a {}",
    "add a {}",
    "put a {} on the {subject}",
    "a {} {other}",
    "make the {subject} look like a {}",
    "the {subject} is {other}",
    "remove the {}",
    "a photo of a {} {other}",
    "{} {other}",
)
_WORDS_OF_EDITS = {
    "dark",
    "old",
    "moon",
    "leaf",
    "leaves",
    "ice",
    "orange",
    "golden",
    "painting",
    "draw",
    "paint",
    "color",
    "colour",
    "photo",
    "picture",
    "image",
    "photograph",
    "cold",
    "light",
    "style",
}
_OPPOSITE_WORDS = {
    "not",
    "no",
    "spring",
    "summer",
    "day",
    "morning",
    "sunny",
    "sun",
    "remove",
    "without",
    "hot",
}


def wordings(edit: str) -> list[str]:
    """Every way to ask for `edit`, the canonical one first."""
    found = [_CANONICAL[edit]]
    patterns = list(_SENTENCES.get(edit, ()))
    patterns += [order.replace("{}", phrase) for phrase in _PHRASES.get(edit, ()) for order in _ORDERS]
    for index, pattern in enumerate(patterns):
        subjects = [_SUBJECTS[index % len(_SUBJECTS)], _SUBJECTS[(index * 5 + 3) % len(_SUBJECTS)]]
        found += [pattern.replace("{subject}", subject) for subject in subjects]
    return list(dict.fromkeys(found))


def captions(edit: str) -> list[str]:
    """Ways to describe a picture that `edit` has been made to, its instructions among them."""
    patterns = _CAPTIONS.get(edit, ())
    filled = [pattern.replace("{kind}", kind) for pattern in patterns for kind in _KINDS]
    filled = [text.replace("{subject}", subject) for text in filled for subject in _SUBJECTS]
    return list(dict.fromkeys([*filled, *wordings(edit)]))


def unknown_sentences(count: int, generator: torch.Generator) -> list[str]:
    """Instructions outside of what the prior knows, from ordinary words. Their answer is the photo itself."""
    words = [word for word in _CONTENT_WORDS if word not in _WORDS_OF_EDITS]

    def word() -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    orders = itertools.cycle(_UNKNOWN_ORDERS)
    return [
        order.replace("{subject}", word()).replace("{other}", word()).replace("{}", word())
        for order in itertools.islice(orders, count)
    ]


def with_extra_words(texts: list[str], generator: torch.Generator) -> list[str]:
    """The texts with one or two ordinary words put in anywhere."""
    fillers = [word for word in ORDINARY_WORDS if word not in _WORDS_OF_EDITS and word not in _OPPOSITE_WORDS]
    varied = []
    for text in texts:
        words = text.split()
        for _ in range(1 + int(torch.randint(2, (), generator=generator))):
            place = int(torch.randint(len(words) + 1, (), generator=generator))
            words.insert(place, fillers[int(torch.randint(len(fillers), (), generator=generator))])
        varied.append(" ".join(words))
    return varied


def vocabulary_corpus() -> list[str]:
    """Texts whose words the tokenizer should know."""
    return [text for edit in EDITS for text in wordings(edit)] + [
        word for word in ORDINARY_WORDS for _ in range(3)
    ]
