"""The course of `csd-nerf compare`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from csd_nerf.comparison.options import CompareOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from csd_nerf.comparison.jobs import Job
    from csd_nerf.comparison.live import LiveTable
    from csd_nerf.comparison.on_ray import Needs
    from csd_nerf.demo.demo_settings import Progress
    from csd_nerf.demo.stages import Stage


@dataclass
class Compare(CompareOptions):
    """Compare methods of editing on one scene at equal cost, and write a report.

    Edits by every instruction, method and seed, measures all of them from the same cameras, and writes
    report.html, results.csv and results.json. The same command goes on where an earlier one was interrupted;
    with more prompts, methods or seeds it adds those. A method that fails is reported, and the others go on.
    """

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
        from csd_nerf.demo.demo_settings import claim_folder

        console = Console()
        self._check_placement()
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
        from csd_nerf.demo.demo_settings import Progress

        progress = Progress(self.output)
        failures: dict[int, str] = {}

        def done(number: int, reason: str | None, had_work: bool = True) -> None:
            if reason is None:
                table.finish(number, sum(progress[stage.key].seconds for stage in jobs[number].stages))
            else:
                failures[number] = reason
                table.fail(number, reason)
            if had_work:
                self._write(scene, jobs, failures)

        with LiveTable(scene, jobs, console) as table:
            if self.ray is None:
                self._make_scene(scene, progress, table, console)
                self._one_by_one(jobs, progress, table, done)
            else:
                self._on_ray(scene, jobs, progress, table, done)
        self._write(scene, jobs, failures)
        self._say(rows_of(jobs, failures), console)
        return failures

    def _make_scene(self, scene: list[Stage], progress: Progress, table: LiveTable, console: Console) -> None:
        from csd_nerf.demo.child import CommandFailed
        from csd_nerf.demo.running_stages import report_failure, run_stage

        try:
            for stage in scene:
                if not stage.finished():
                    run_stage(stage, progress, table.of(None))
        except CommandFailed as failure:
            report_failure(stage, failure, self.command_line(), console)
            raise SystemExit(1) from None
        table.finish(None, 0.0)

    def _one_by_one(
        self, jobs: list[Job], progress: Progress, table: LiveTable, done: Callable[..., None]
    ) -> None:
        from csd_nerf.comparison.running_jobs import run_stages

        for number, job in enumerate(jobs):
            left = job.left()
            done(number, run_stages(left, progress, table.of(number)), bool(left))

    def _on_ray(
        self,
        scene: list[Stage],
        jobs: list[Job],
        progress: Progress,
        table: LiveTable,
        done: Callable[..., None],
    ) -> None:
        from csd_nerf.comparison.on_ray import Cluster

        def scene_done(_: int | None, reason: str | None) -> None:
            if reason is not None:
                raise SystemExit(f"The scene failed: {reason}\nTo go on from there: {self.command_line()}")
            table.finish(None, 0.0)

        with Cluster(next(iter(self.ray or ()), None), self.needs()) as cluster:
            of_scene = tuple(stage for stage in scene if not stage.finished())
            if of_scene:
                cluster.carry_out({None: of_scene}, progress, table, scene_done)
            for number, job in enumerate(jobs):
                if not job.left():
                    done(number, None, False)
            left = {number: tuple(job.left()) for number, job in enumerate(jobs) if job.left()}
            cluster.carry_out(left, progress, table, done)

    def _check_placement(self) -> None:
        if self.ray is not None:
            from csd_nerf.comparison.on_ray import check_ray

            check_ray(self.ray)
            self.needs().check()

    def needs(self) -> Needs:
        """What Ray is to set aside for each edit."""
        from csd_nerf.comparison.on_ray import Needs

        return Needs(self.gpus_per_edit, self.cpus_per_edit, self.memory_per_edit)

    def _write(self, scene: list[Stage], jobs: list[Job], failures: dict[int, str]) -> None:
        from csd_nerf.comparison.report import write_report
        from csd_nerf.comparison.results import as_csv, as_json, rows_of
        from csd_nerf.files import write_text

        rows = rows_of(jobs, failures)
        write_text(self.output / "results.csv", as_csv(rows))
        command = self.command_line(placed=False)
        everything = {"command": command, **as_json(rows)}
        write_text(self.output / "results.json", json.dumps(everything, indent=1, allow_nan=False) + "\n")
        write_report(self.output / "report.html", rows, scene, jobs, command)

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
