"""The options of `csd-nerf blend`, and its course."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from csd_nerf.errors import check
from csd_nerf.files import check_free


@dataclass
class Blend:
    """Save an edit in another strength: a mixture of the source and the edited scene, without training.

    What it saves is a run like the edit's own. ns-viewer, ns-render, ns-export and csd-nerf evaluate open it;
    neither the run nor the scene that it started from is needed for that, but to evaluate it.
    """

    edit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of the edit, as `ns-train csd-edit` printed it."""
    strength: float
    """How much of the edit is shown, 0..1: 0 is the source and 1 the edit, to the bit."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to be made for the run."""

    def run(self) -> None:
        """Mix, save and say how to open it.

        Raises:
            InputError: for a strength that is none, an output that is there already, a folder without an
                edit, or a source that is gone.
        """
        between = "from 0, the source, to 1, the edit"
        check(0 <= self.strength <= 1, "--strength", expected=between, got=self.strength)
        check_free(self.output, force=False)
        from rich.console import Console

        console = Console()
        with warnings.catch_warnings(), console.status("mixing"):
            warnings.simplefilter("ignore")  # nerfstudio's and torch's about their own code, line after line
            from csd_nerf.nerf.blended_run import save_blend
            from csd_nerf.nerf.edited_run import open_edited_run

            save_blend(open_edited_run(self.edit), self.strength, self.output)
        from csd_nerf.nerf.closing_words import evaluate_command, viewer_command

        console.print(Text(f"Pictures:  {self.output / 'pictures'}"), soft_wrap=True)
        console.print(Text(f"Look:      {viewer_command(self.output)}"), soft_wrap=True)
        console.print(Text(f"Measure:   {evaluate_command(self.output)}"), soft_wrap=True)
