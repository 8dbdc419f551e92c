"""The options of `csd-nerf evaluate`, and its course."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from csd_nerf.errors import InputError, check, check_at_least, memory_explained
from csd_nerf.evaluation.weights import CLIP

ROOM, LESS = "room for the scene and its views", "turn down --size, then --views"
"""Said when memory runs out."""
LEAST_SIZE = 16
"""Pixels; SSIM's window is 11 wide."""


@dataclass
class Evaluate:
    """Measure an edited run: how well it follows, what it keeps, whether its views agree, what it cost.

    Compares the scene before and after the edit on its evaluation cameras, prints a table and writes the
    figures as JSON. Needs no diffusion model and no network; metrics whose weights are not on this machine
    are listed as unavailable.
    """

    edit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of the edit, as `ns-train csd-edit` printed it."""
    output: Path | None = None
    """JSON file to write. Without it: evaluation.json in the run folder."""
    views: int = 12
    """Evaluation cameras, spread over the evaluation split; fewer when it is smaller."""
    size: int | None = None
    """Short side of the views in pixels. Without it: the edit's --pipeline.picture-size."""
    text: str = ""
    """For CLIP, what the edited scene shows, as a description: "a bear statue at night". Edits that were
    made with descriptions bring theirs."""
    source_text: str = ""
    """For CLIP, what the scene showed before: "a bear statue"."""
    clip: str = CLIP
    """CLIP to measure with: a hub id, or a folder in transformers' format. Figures of different CLIPs do
    not compare."""
    download: bool = False
    """Fetch weights that are not on this machine: CLIP (1.7 GB), DINO (0.3 GB), AlexNet (0.2 GB)."""

    def run(self) -> None:
        """Measure, print and write.

        Raises:
            InputError: for options that cannot be used, or a folder that is not that of an edit.
        """
        self.check()
        from rich.console import Console

        console = Console()
        with warnings.catch_warnings(), console.status("opening the run") as status:
            warnings.simplefilter("ignore")  # nerfstudio's and torch's about their own code, line after line
            from csd_nerf.evaluation.table import print_evaluation
            from csd_nerf.nerf.edited_run import open_edited_run
            from csd_nerf.nerf.evaluate_run import EvaluationSettings, evaluate

            settings = EvaluationSettings(
                views=self.views,
                size=self.size,
                text=self.text,
                source_text=self.source_text,
                clip=self.clip,
                download=self.download,
            )
            with memory_explained(expected=ROOM, hint=LESS):
                run = open_edited_run(self.edit)
                evaluation = evaluate(run, settings, say=status.update)
        print_evaluation(evaluation, console)
        output = self.output or run.folder / "evaluation.json"
        evaluation.write(output)
        console.print(Text(f"Written: {output}"), soft_wrap=True)

    def check(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            InputError: naming the option.
        """
        check_at_least("views", self.views, 1)
        check_at_least("size", self.size, LEAST_SIZE)
        check(
            bool(self.text or not self.source_text),
            "--source-text was given without --text",
            expected="descriptions of the scene before and after the edit",
            got="only the one before",
            hint='add --text "..."',
        )
        if self.output is not None and (self.output.is_dir() or self.output.suffix != ".json"):
            raise InputError(
                f"{self.output} cannot be written",
                expected="the name of a .json file",
                got="a folder" if self.output.is_dir() else repr(self.output.name),
                hint="pass --output FILE.json, or leave it out",
            )
