"""The options of `csd-nerf compare`, and its course."""

from __future__ import annotations

import json
import shlex
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from csd_nerf.evaluation.weights import CLIP

if TYPE_CHECKING:
    from rich.console import Console

    from csd_nerf.comparison.jobs import Job
    from csd_nerf.demo.stages import Stage


@dataclass
class Compare:
    """Compare methods of editing on one scene at equal cost, and write a report.

    Edits by every instruction, method and seed, measures all of them from the same cameras, and writes
    report.html, results.csv and results.json. The same command goes on where an earlier one was interrupted;
    with more prompts, methods or seeds it adds those. A method that fails is reported, and the others go on.
    """

    output: Path = Path("csd-nerf-compare")
    """Folder for everything: report, figures, pictures, runs and logs."""
    data: Path | None = None
    """A captured scene in nerfstudio's format. Without it and --load-dir a still life is rendered."""
    load_dir: Path | None = None
    """Run folder of the trained scene. Without it one is trained by csd-nerfacto-tiny."""
    prompts: tuple[str, ...] = ()
    """Instructions to follow, each in quotes."""
    descriptions: tuple[str, ...] = ()
    """For each instruction what the edited scene shows, for CLIP and for text-to-image methods (dds-edit and
    its kin): "a bear statue at night". The bundled prior's instructions bring their own."""
    source_description: str = ""
    """What the scene shows before: "a bear statue"."""
    methods: tuple[str, ...] = ("csd-edit", "in2n-baseline", "per-view")
    """Editing methods of nerfstudio, and per-view: each view by itself, by InstructPix2Pix."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the edits; their spread is in the report."""
    evaluations: tuple[int, ...] = ()
    """Budgets in U-Net evaluations, rising: every edit is measured when it has spent one, and goes on to the
    next. Without this and --minutes: 1600 4800."""
    minutes: tuple[float, ...] = ()
    """Budgets in minutes instead, which the steps of each edit may take on this machine, rising."""
    recipe: str | None = None
    """Settings of all methods: `tiny` (two CPU cores, with the bundled priors), or a YAML file."""
    runs: tuple[Path, ...] = ()
    """Run folders of edits of this scene that are there already, to be measured beside the others. Without
    prompts they are compared by themselves."""
    train_steps: int = 2000
    """Steps of a scene that is trained on the way."""
    views: int = 12
    """Evaluation cameras; fewer when there are fewer."""
    size: int | None = None
    """Short side of the measured pictures in pixels. Without it: csd-edit's --pipeline.picture-size."""
    per_view_steps: int = 20
    """Sampling steps of per-view."""
    turntable_frames: int = 24
    """Frames of the report's videos, of the first seed; 0 for none."""
    clip: str = CLIP
    """CLIP to measure with: a hub id, or a folder in transformers' format."""
    download: bool = False
    """Fetch weights of metrics that are not here: CLIP (1.7 GB), DINO (0.3 GB), AlexNet (0.2 GB)."""

    def run(self) -> None:
        """Carry out what is not done yet, and write the report.

        Raises:
            InputError: for options that cannot be used together, or a folder with other settings.
            SystemExit: 1 when an edit failed.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console

        from csd_nerf.comparison.checking import checked
        from csd_nerf.comparison.jobs import jobs_of, scene_stages
        from csd_nerf.demo.settings import claim_folder

        console = Console()
        settings, given = checked(self)
        jobs = jobs_of(self.output, settings, given)
        claim_folder(
            self.output,
            settings.measures.as_json(),
            what="comparison",
            command="csd-nerf compare",
            go_on=lambda saved, different: "",
            later={"minutes": []},
        )
        try:
            failures = self._carry_out(scene_stages(self.output, settings), jobs, console)
        except KeyboardInterrupt:
            console.print("\nStopped; what is done is kept. To go on:", highlight=False)
            console.print(Text(f"  {self.command_line()}"), soft_wrap=True)
            raise
        if failures:
            raise SystemExit(1)

    def _carry_out(self, scene: list[Stage], jobs: list[Job], console: Console) -> dict[int, str]:
        from csd_nerf.comparison.live import LiveTable
        from csd_nerf.comparison.results import rows_of
        from csd_nerf.demo.child import CommandFailed
        from csd_nerf.demo.running import explain, report_failure, run_stage
        from csd_nerf.demo.settings import Progress

        progress, failures = Progress(self.output), {}
        with LiveTable(scene, jobs, console) as table:
            try:
                for stage in scene:
                    if not stage.finished():
                        run_stage(stage, progress, table)
            except CommandFailed as failure:
                report_failure(stage, failure, self.command_line(), console)
                raise SystemExit(1) from None
            for number, job in enumerate(jobs):
                table.turn_to(number)
                left = [stage for stage in job.stages if not stage.finished()]
                try:
                    for stage in left:
                        run_stage(stage, progress, table)
                except CommandFailed as failure:
                    lines = failure.lines or [explain(failure.status)]
                    failures[number] = "\n".join([*lines, f"All of its output: {failure.log}"])
                    table.fail(number, failures[number])
                else:
                    table.finish(number, sum(progress[stage.key].seconds for stage in job.stages))
                if left:
                    self._write(scene, jobs, failures)
        self._write(scene, jobs, failures)
        self._say(rows_of(jobs, failures), console)
        return failures

    def _write(self, scene: list[Stage], jobs: list[Job], failures: dict[int, str]) -> None:
        from csd_nerf.comparison.report import write_report
        from csd_nerf.comparison.results import as_csv, as_json, rows_of
        from csd_nerf.files import write_text

        rows = rows_of(jobs, failures)
        write_text(self.output / "results.csv", as_csv(rows))
        everything = {"command": self.command_line(), **as_json(rows)}
        write_text(self.output / "results.json", json.dumps(everything, indent=1, allow_nan=False) + "\n")
        write_report(self.output / "report.html", rows, scene, jobs, self.command_line())

    def _say(self, rows: list[Any], console: Console) -> None:
        measured = sum(row.status == "measured" for row in rows)
        failed = sum(row.status == "failed" for row in rows)
        console.print(
            f"{measured} of {len(rows)} measured" + (f", {failed} failed" if failed else ""), highlight=False
        )
        for row in rows:
            if row.status == "failed":
                console.print(Text(f"failed: {row.prompt}, {row.method}, seed {row.seed}", "red"))
                console.print(Text(row.reason), soft_wrap=True)
        console.print("Open in a browser:", highlight=False)
        report = (self.output / "report.html").resolve()
        console.print(Text(f"  {report}"), soft_wrap=True)

    def command_line(self) -> str:
        """The command with these options, defaults left out."""
        words = ["csd-nerf", "compare"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is not MISSING and value == field.default:
                continue
            words.append(f"--{field.name.replace('_', '-')}")
            if not isinstance(value, bool):
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
        return shlex.join(words)
