"""Which checkpoints of a nerfstudio run are whole; needs the standard library alone."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their step, oldest first; those that a kill cut short are left out."""
    found = {
        int(name.group(1)): file
        for file in folder.glob("step-*.ckpt")
        if (name := re.fullmatch(r"step-(\d+)\.ckpt", file.name)) and zipfile.is_zipfile(file)
    }
    return dict(sorted(found.items()))
