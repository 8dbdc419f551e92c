"""The edits of a comparison, each a few commands: edit up to a budget, draw and measure, and again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from csd_nerf.comparison.budget import PER_VIEW, Bought, method_config, needs_descriptions, spend
from csd_nerf.comparison.compare_settings import Budget, CompareSettings, Instruction
from csd_nerf.demo.demo_settings import FULL, DemoSettings
from csd_nerf.demo.stages import SCENE_RUN, NerfstudioStage, Stage, training_stages
from csd_nerf.nerf.cost import read_cost

EVALUATION = "evaluation.json"
VIDEO = "turntable.mp4"
SOURCE_PICTURES = "pictures/source"
PICTURES_SHOWN = 4
STEPS_WITHOUT_END = 1_000_000
"""Of an edit that ends when its minutes are over."""
VIDEO_SIZE = 128
"""Short side of the videos at most, in pixels: there may be dozens of them on a page."""


@dataclass(frozen=True, kw_only=True)
class EditRun(NerfstudioStage):
    """An edit by `ns-train`, from the start or from where an earlier budget left it.

    Attributes:
        method: of nerfstudio.
        start: options that begin the edit.
        steps: in all, of this budget and those before it.
        minutes: that they may take, likewise; None for as long as they take.
    """

    key: str
    run_folder: str
    method: str
    start: tuple[str, ...]
    steps: int
    minutes: float | None = None

    @property
    def title(self) -> str:
        return "edit"

    @property
    def total(self) -> int:
        return self.steps

    @property
    def amount(self) -> str:
        return super().amount if self.minutes is None else str(Budget(self.minutes, "minutes"))

    def finished(self) -> bool:
        if super().finished() or self.minutes is None:
            return super().finished()
        cost = read_cost(self.folder / self.run_folder)
        return self.newest_checkpoint() is not None and cost is not None and cost.seconds >= 60 * self.minutes

    def command(self) -> list[str]:
        return self._command(self.start)

    def next_command(self) -> tuple[list[str], int]:
        newest = self.newest_checkpoint()
        if newest is None:
            return self.command(), 0
        return self._command(("--load-dir", self.run_folder)), newest[1]

    def _command(self, start: tuple[str, ...]) -> list[str]:
        head = ["ns-train", self.method, *start, "--max-num-iterations", str(self.total)]
        if self.minutes is not None:
            head += ["--max-minutes", f"{self.minutes:g}"]
        # Pictures and turntable are drawn of all methods alike, by what measures them.
        own = ["--pipeline.turntable-frames", "0", "--pipeline.steps-per-picture", "0"]
        return [*head, *self.output_options(), *own, "--logging.steps-per-log", "1"]


@dataclass(frozen=True, kw_only=True)
class Measurement(Stage):
    """Drawing and measuring an edit; also editing, for the edits view by view.

    Attributes:
        pictures: folder for figures, pictures and video.
        arguments: of `python -m csd_nerf.comparison.measuring`, without those that all have.
        frames: of the video; 0 for none.
        shared: arguments that all have.
    """

    key: str
    pictures: str
    arguments: tuple[str, ...]
    frames: int
    shared: tuple[str, ...]
    unit = "views"

    @property
    def title(self) -> str:
        return "measure"

    @property
    def total(self) -> int:
        return 1 + self.frames

    def command(self) -> list[str]:
        own = ["--output", self.pictures, "--turntable-frames", str(self.frames)]
        return ["python", "-m", "csd_nerf.comparison.measuring", *self.arguments, *own, *self.shared]

    def finished(self) -> bool:
        folder = self.folder / self.pictures
        return (folder / EVALUATION).exists() and (not self.frames or (folder / VIDEO).exists())

    def evaluation(self) -> dict[str, object] | None:
        """What was measured; None before."""
        file = self.folder / self.pictures / EVALUATION
        return json.loads(file.read_text(encoding="utf8")) if file.exists() else None


@dataclass(frozen=True)
class Job:
    """One edit: a row of the table.

    Attributes:
        instruction: it follows.
        method: by its name in the table.
        seed: of the edit; None of one that was made elsewhere.
        stages: all commands, in order.
        measurements: the stages that measure, with the budget of each; None where it does not apply.
    """

    instruction: Instruction
    method: str
    seed: int | None
    stages: tuple[Stage, ...]
    measurements: tuple[tuple[Budget | None, Measurement], ...]

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left()

    def left(self) -> list[Stage]:
        """The stages that are not finished."""
        return [stage for stage in self.stages if not stage.finished()]


def scene_stages(folder: Path, settings: CompareSettings) -> list[Stage]:
    """The stages that make the scene, as `csd-nerf demo` makes it; none where it is there."""
    if settings.measures.source is not None:
        return []
    return training_stages(folder, _demo_settings(settings))


def jobs_of(folder: Path, settings: CompareSettings, given: dict[Path, tuple[Instruction, str]]) -> list[Job]:
    """All edits of a comparison, those that need the same instruction together.

    Args:
        folder: of the comparison; commands run in it.
        settings: what is compared.
        given: instruction and method of the edits that were made elsewhere.

    Raises:
        InputError: a recipe does not fit; a budget is too small.
    """
    jobs = []
    for instruction in settings.instructions:
        for method in settings.methods:
            for seed in settings.seeds:
                shown = seed == settings.seeds[0]
                make = _per_view_job if method == PER_VIEW else _edit_job
                jobs.append(make(folder, settings, instruction, method, seed, shown))
    for number, (run, (instruction, method)) in enumerate(given.items(), start=1):
        pictures = f"pictures/{instruction.folder}/given/{number}-{run.name}"
        measurement = _measurement(
            folder, settings, instruction, pictures, ("--run", str(run)), settings.measures.turntable_frames
        )
        jobs.append(Job(instruction, f"{method} (given)", None, (measurement,), ((None, measurement),)))
    return jobs


def _edit_job(
    folder: Path, settings: CompareSettings, instruction: Instruction, method: str, seed: int, shown: bool
) -> Job:
    measures = settings.measures
    run = f"runs/{instruction.folder}/{method}/seed-{seed}"
    config = method_config(method, measures.recipe)
    start = ["--load-dir", measures.source or SCENE_RUN]
    if measures.data is not None and measures.source is not None:
        start += ["--data", measures.data]
    if measures.recipe is not None:
        start += ["--recipe", measures.recipe]
    if needs_descriptions(config):
        start += ["--prompt", instruction.description]
        start += ["--pipeline.source-prompt", measures.source_description]
    else:
        start += ["--prompt", instruction.prompt]
    stages: list[Stage] = []
    measurements: list[tuple[Budget | None, Measurement]] = []
    for budget in measures.budgets:
        timed = budget.unit == "minutes"
        bought = Bought(STEPS_WITHOUT_END) if timed else spend(method, config, int(budget.amount))
        # Most methods go on from the smaller budget; one that asks once begins anew with more views.
        folder_of_run = run if bought.views is None else f"{run}-{budget.folder}"
        views = [] if bought.views is None else ["--pipeline.particles", str(bought.views)]
        edit = EditRun(
            folder,
            dataclasses.replace(_demo_settings(settings), prompt=instruction.prompt, seed=seed),
            key=f"{run.removeprefix('runs/')}.{budget.folder}.edit".replace("/", "."),
            run_folder=folder_of_run,
            method=method,
            start=(*start, *views),
            steps=bought.steps,
            minutes=budget.amount if timed else None,
        )
        last = budget == measures.budgets[-1]
        measurement = _measurement(
            folder,
            settings,
            instruction,
            f"pictures/{run.removeprefix('runs/')}/{budget.folder}",
            ("--run", folder_of_run),
            measures.turntable_frames if shown and last else 0,
        )
        stages += [edit, measurement]
        measurements.append((budget, measurement))
    return Job(instruction, method, seed, tuple(stages), tuple(measurements))


def _per_view_job(
    folder: Path, settings: CompareSettings, instruction: Instruction, method: str, seed: int, shown: bool
) -> Job:
    measures = settings.measures
    arguments = ["--scene", measures.source or SCENE_RUN, "--seed", str(seed)]
    if measures.data is not None and measures.source is not None:
        arguments += ["--data", measures.data]
    if measures.recipe is not None:
        arguments += ["--recipe", measures.recipe]
    measurement = _measurement(
        folder,
        settings,
        instruction,
        f"pictures/{instruction.folder}/{method}/seed-{seed}",
        (*arguments, "--steps", str(measures.per_view_steps)),
        measures.turntable_frames if shown else 0,
    )
    return Job(instruction, method, seed, (measurement,), ((None, measurement),))


def _measurement(
    folder: Path,
    settings: CompareSettings,
    instruction: Instruction,
    pictures: str,
    arguments: tuple[str, ...],
    frames: int,
) -> Measurement:
    measures = settings.measures
    shared = [
        *("--instruction", instruction.prompt, "--text", instruction.description),
        *("--source-text", measures.source_description if instruction.description else ""),
        *("--views", str(measures.views), "--size", str(measures.size), "--clip", measures.clip),
        *("--source-output", SOURCE_PICTURES),
    ]
    return Measurement(
        folder,
        _demo_settings(settings),
        key=f"{pictures.removeprefix('pictures/')}.measure".replace("/", "."),
        pictures=pictures,
        arguments=arguments,
        frames=frames,
        shared=(*shared, "--download") if settings.download else tuple(shared),
    )


def _demo_settings(settings: CompareSettings) -> DemoSettings:
    """What the stages of the demo are to know: they make the scene, and lead `ns-train`."""
    return DemoSettings(
        data=settings.measures.data,
        prompt="",
        prior="",
        train_steps=settings.measures.train_steps,
        edit_steps=0,
        seed=SCENE_SEED,
        sizes=FULL,
    )


SCENE_SEED = 0
"""Of a scene that is made on the way: the same whatever the seeds of the edits."""
