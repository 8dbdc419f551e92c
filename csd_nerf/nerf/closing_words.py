"""Commands that go on from a run, as its user is told them."""

from __future__ import annotations

import shlex
from pathlib import Path


def viewer_command(folder: Path) -> str:
    """Opens the scene of a run in the viewer."""
    return f"ns-viewer --load-config {shlex.quote(str(folder / 'config.yml'))}"


def evaluate_command(folder: Path) -> str:
    """Measures an edit."""
    return f"csd-nerf evaluate {shlex.quote(str(folder))}"
