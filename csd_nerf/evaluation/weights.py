"""Networks that metrics need, and what happens where their weights cannot be had. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

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


def require_weights(repository: str, *, download: bool) -> None:
    """See whether a model is here before transformers, which takes seconds to import, is asked for it.

    Args:
        repository: hub id, or folder in transformers' format.
        download: it may be fetched.

    Raises:
        Unavailable: it is not here, and may not be fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if download or Path(repository).is_dir():
        return
    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError as error:
        raise weights_absent(repository, error) from error
    if not isinstance(found, str):
        raise weights_absent(repository, FileNotFoundError("not in the Hugging Face cache"))


def weights_absent(repository: str, error: Exception) -> Unavailable:
    """The weights of a model on the Hugging Face hub are not on this machine.

    Args:
        repository: its id or folder.
        error: what looked for them said.
    """
    return Unavailable(
        f"no weights of {repository} on this machine ({first_line(error)})",
        f"fetch them with `hf download {repository}`, or pass --download",
    )


def first_line(error: Exception) -> str:
    """What an error says, short enough for a table."""
    said = str(error).strip()
    return said.splitlines()[0][:90] if said else type(error).__name__
