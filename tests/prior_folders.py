"""Breaking prior folders on purpose, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from csd_nerf.errors import InputError
from csd_nerf.priors import check_prior


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def check_that_a_missing_part_is_named(folder: Path, part: str) -> None:
    """Takes the part, a file or a folder, out of a prior's folder."""
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"missing parts(.|\n)*no {part}"):
        check_prior(str(folder))
