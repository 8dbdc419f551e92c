"""Networks that metrics need, and what happens where their weights cannot be had. Imports nothing heavy."""

from __future__ import annotations

import shlex
import textwrap

CLIP = "openai/clip-vit-large-patch14"
"""ViT-L/14 with OpenAI's pretraining, as Instruct-NeRF2NeRF uses."""

DINO = "facebook/dino-vitb8"
"""The ViT whose keys Tumanyan et al. compare."""


class Unavailable(Exception):
    """A metric cannot be measured here; the others still can.

    Args:
        reason: why, in one clause.
        hint: what to do to have it.
    """

    def __init__(self, reason: str, hint: str) -> None:
        self.reason = reason
        self.hint = hint
        super().__init__(f"{reason}; {hint}")


def weights_absent(repository: str, error: Exception) -> Unavailable:
    """The weights of a model on the Hugging Face hub are not on this machine.

    Args:
        repository: its id or folder.
        error: what transformers said.
    """
    return Unavailable(
        f"no weights of {repository} on this machine ({first_line(error)})",
        f"fetch them with `hf download {shlex.quote(repository)}`, or pass --download",
    )


def first_line(error: Exception) -> str:
    """What an error says, short enough for a table."""
    said = str(error).strip()
    return textwrap.shorten(said.splitlines()[0], 90, placeholder=" ...") if said else type(error).__name__
