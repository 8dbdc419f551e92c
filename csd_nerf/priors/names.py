"""What the name of a model stands for: a bundled model, a folder, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from csd_nerf.bundled import bundled_path
from csd_nerf.errors import InputError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_model(name: str, bundled: Sequence[str], *, kind: str, expected: str, hint: str) -> Path | None:
    """The folder that a name stands for; None for a hub id, which only the hub knows more about.

    Args:
        name: bundled name, folder, or hub id.
        bundled: names of the bundled models of this kind.
        kind: what is looked for, for the message.
        expected, hint: of the message when there is none.

    Raises:
        InputError: no bundled model, no folder, and not the form of a hub id.
    """
    if name in bundled:
        return bundled_path(name)
    folder = Path(name).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(name):
        return None
    if not folder.is_dir():
        raise InputError(f"there is no such {kind}", expected=expected, got=repr(name), hint=hint)
    newest = folder / "refs" / "main"  # as huggingface_hub keeps a model
    return folder / "snapshots" / newest.read_text().strip() if newest.is_file() else folder
