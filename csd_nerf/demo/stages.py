"""The stages of a demo: each one's command, when it is done, and how to go on with half of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from csd_nerf.checkpoints import whole_checkpoints
from csd_nerf.demo.demo_settings import DemoSettings, Sizes
from csd_nerf.nerf.formats import RECORD3D, Format, format_of

# Relative to the demo's folder, so that it can be moved and still be opened.
SCENE = "scene"
SCENE_RUN = "runs/scene/csd-nerfacto-tiny/demo"
EDIT_RUN = "runs/edit/csd-edit-tiny/demo"
PICTURES = "pictures"


@dataclass(frozen=True)
class Stage(ABC):
    """One command of the demo.

    Attributes:
        folder: of the demo; commands run in it, and their paths are relative to it.
        settings: of the demo.
    """

    folder: Path
    settings: DemoSettings

    key = ""
    """Its name in records and logs."""
    unit = "steps"
    """What is counted."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, for people."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Steps of the whole stage."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that does the whole stage."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def next_command(self) -> tuple[list[str], int]:
        """The command to run now, and the steps that an earlier run had done."""
        return self.command(), 0

    @property
    def amount(self) -> str:
        """What there is to do, for people."""
        return f"{self.total} {self.unit}"

    @property
    def sizes(self) -> Sizes:
        """Of the demo."""
        return self.settings.sizes


class RenderScene(Stage):
    """Renders the procedural scene."""

    key = "scene"
    unit = "pictures"

    @property
    def title(self) -> str:
        return "Render the still life"

    @property
    def total(self) -> int:
        return self.sizes.views

    def command(self) -> list[str]:
        views = ["--views", str(self.sizes.views), "--size", str(self.sizes.size)]
        return [*_python("csd_nerf.scenes"), "--output", SCENE, *views, "--seed", str(self.settings.seed)]

    def finished(self) -> bool:
        return (self.folder / SCENE / "transforms.json").exists()


class ReadRecord3D(Stage):
    """Reads the cameras of a Record3D export, which nerfstudio has no dataparser for."""

    key = "scene"
    unit = "export"

    @property
    def title(self) -> str:
        return "Read the Record3D export"

    @property
    def total(self) -> int:
        return 1

    def command(self) -> list[str]:
        data = ["--data", str(self.settings.data)]
        return [*_python("csd_nerf.nerf.record3d"), *data, "--output", SCENE]

    def finished(self) -> bool:
        return (self.folder / SCENE / "transforms.json").exists()


class NerfstudioStage(Stage):
    """A run of `ns-train`, always in the same run folder."""

    run_folder = ""

    def finished(self) -> bool:
        newest = self.newest_checkpoint()
        return newest is not None and newest[1] >= self.total

    def newest_checkpoint(self) -> tuple[str, int] | None:
        """The newest whole checkpoint, relative to the demo's folder, and the steps that are in it."""
        found = whole_checkpoints(self.folder / self.run_folder / "nerfstudio_models")
        if not found:
            return None
        step, file = next(reversed(found.items()))
        return file.relative_to(self.folder).as_posix(), step + 1

    def output_options(self) -> list[str]:
        """Options that keep all runs of the stage in one folder, without a viewer, one line a report."""
        runs, experiment, _, timestamp = self.run_folder.split("/")
        return [
            *("--output-dir", runs, "--experiment-name", experiment, "--timestamp", timestamp),
            *("--machine.seed", str(self.settings.seed), "--vis", "tensorboard"),
            *("--logging.local-writer.max-log-size", "0"),
        ]


class TrainScene(NerfstudioStage):
    """Trains the scene as it is."""

    key = "train"
    run_folder = SCENE_RUN

    @property
    def title(self) -> str:
        return "Train the scene"

    @property
    def total(self) -> int:
        return self.settings.train_steps

    def command(self) -> list[str]:
        return self._command([], self.total)

    def next_command(self) -> tuple[list[str], int]:
        newest = self.newest_checkpoint()
        if newest is None:
            return self.command(), 0
        checkpoint, done = newest
        # nerfstudio counts the steps still to do.
        return self._command(["--load-checkpoint", checkpoint], self.total - done), done

    def _command(self, start: list[str], steps: int) -> list[str]:
        found = _format(self.settings)
        data = SCENE if self.settings.data is None or found is RECORD3D else self.settings.data
        head = ["ns-train", "csd-nerfacto-tiny", "--data", data, *start, "--max-num-iterations", str(steps)]
        words = found.words if found else ()  # of a dataparser, which end the command
        return [*head, *self.sizes.train_arguments, *self.output_options(), *words]


class EditScene(NerfstudioStage):
    """Edits the trained scene."""

    key = "edit"
    run_folder = EDIT_RUN

    @property
    def title(self) -> str:
        return f"Edit: {self.settings.prompt}"

    @property
    def total(self) -> int:
        return self.settings.edit_steps

    def command(self) -> list[str]:
        start = ["--load-dir", SCENE_RUN, "--prompt", self.settings.prompt]
        return self._command([*start, "--pipeline.prior", self.settings.prior])

    def next_command(self) -> tuple[list[str], int]:
        newest = self.newest_checkpoint()
        if newest is None:
            return self.command(), 0
        return self._command(["--load-dir", self.run_folder]), newest[1]

    def _command(self, start: list[str]) -> list[str]:
        head = ["ns-train", "csd-edit-tiny", *start, "--max-num-iterations", str(self.total)]
        # The last stage draws the turntable, beside that of the scene before the edit.
        own = ["--pipeline.turntable-frames", "0", "--logging.steps-per-log", "1"]
        return [*head, *self.sizes.edit_arguments, *self.output_options(), *own]


class DrawPictures(Stage):
    """Draws the scene before and after the edit."""

    key = "pictures"
    unit = "frames"

    @property
    def title(self) -> str:
        return "Draw before and after"

    @property
    def total(self) -> int:
        return 2 * self.sizes.turntable_frames

    def command(self) -> list[str]:
        sizes = self.sizes
        known = ["--known-edits"] if self.settings.data is None else []
        return [
            *(*_python("csd_nerf.demo.draw_pictures"), "--run", EDIT_RUN, "--output", PICTURES),
            *("--size", str(sizes.picture_size), "--turntable-size", str(sizes.turntable_size)),
            *("--turntable-frames", str(sizes.turntable_frames), *known),
        ]

    def finished(self) -> bool:
        # Written last, and renamed when whole.
        return (self.folder / PICTURES / "turntable.mp4").exists()


def stages_of(folder: Path, settings: DemoSettings) -> list[Stage]:
    """The stages in order."""
    return [*training_stages(folder, settings), EditScene(folder, settings), DrawPictures(folder, settings)]


def training_stages(folder: Path, settings: DemoSettings) -> list[Stage]:
    """The stages that end with a trained scene; one of the user's own needs no rendering."""
    train = TrainScene(folder, settings)
    if settings.data is None:
        return [RenderScene(folder, settings), train]
    return [ReadRecord3D(folder, settings), train] if _format(settings) is RECORD3D else [train]


def _format(settings: DemoSettings) -> Format | None:
    return None if settings.data is None else format_of(Path(settings.data))


def _python(module: str) -> list[str]:
    return ["python", "-m", module]
