"""The evaluation of one edited run: draw the scene before and after its edit, and measure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text
from torch import Tensor

import csd_nerf
from csd_nerf.cameras import view_size
from csd_nerf.evaluation.figures import Evaluation
from csd_nerf.evaluation.measure import DrawnEdit, KnownEdit, load_networks, measure
from csd_nerf.evaluation.neighbours import CamerasWithNeighbours, with_neighbours
from csd_nerf.evaluation.pixels import psnr
from csd_nerf.evaluation.reprojection import TOLERANCE, PosedPictures, seen_points
from csd_nerf.evaluation.weights import CLIP
from csd_nerf.nerf.cost import read_cost
from csd_nerf.nerf.depth_renders import render_with_depth
from csd_nerf.nerf.source_scene import source_scene
from csd_nerf.scenes.operators import answers_to

if TYPE_CHECKING:
    from csd_nerf.nerf.edit_pipeline import EditPipeline
    from csd_nerf.nerf.edited_run import EditedRun

Say = Callable[[str], None]
"""Takes what is being done now, for a display."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate.

    Attributes:
        views: evaluation cameras, spread over the evaluation split; fewer when it is smaller.
        size: short side of the views in pixels; None takes the edit's `picture_size`.
        text, source_text: descriptions of the scene after and before the edit, for CLIP. Empty takes those
            of an edit that was itself asked for with descriptions.
        clip: hub id or folder.
        download: fetch weights that are not on this machine.
        instruction: whose exact operator the edit is compared with; empty takes the prompt. An edit that was
            asked for with a description was meant to follow an instruction, too.
    """

    views: int = 12
    size: int | None = None
    text: str = ""
    source_text: str = ""
    clip: str = CLIP
    download: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Drawing:
    """An edit drawn from its evaluation cameras and their neighbours.

    Attributes:
        edit: what is measured.
        pinholes: the cameras, without the distortion of the lens.
        names: of the evaluation photos' files.
    """

    edit: DrawnEdit
    pinholes: CamerasWithNeighbours
    names: list[str]


def evaluate(run: EditedRun, settings: EvaluationSettings, say: Say) -> Evaluation:
    """Measure an edited run. No diffusion model is loaded.

    Args:
        run: of `open_edited_run`.
        settings: how.
        say: for a display.
    """
    return evaluate_drawing(run, draw_edit(run.pipeline, settings, say), settings, say)


def evaluate_drawing(run: EditedRun, drawing: Drawing, settings: EvaluationSettings, say: Say) -> Evaluation:
    """Measure an edited run that was drawn; see `evaluate`."""
    say("measuring")
    networks = load_networks(run.pipeline.device, clip=settings.clip, download=settings.download)
    cost = read_cost(run.folder)
    return Evaluation(
        facts={**_run_facts(run), **view_facts(drawing), "versions": versions()},
        figures=measure(drawing.edit, networks),
        cost=dataclasses.asdict(cost) if cost else None,
    )


def edit_figures(pipeline: EditPipeline) -> dict[str, float]:
    """The figures of a loaded edit under the usual settings, in the form of nerfstudio's metrics.

    What is unavailable is said and left out.

    Raises:
        InputError: when the scene that the edit started from is gone.
    """
    settings = EvaluationSettings()
    drawing = draw_edit(pipeline, settings, CONSOLE.print)
    networks = load_networks(pipeline.device, clip=settings.clip, download=settings.download)
    figures = measure(drawing.edit, networks)
    for missing in figures.missing:
        CONSOLE.print(Text(f"unavailable: {missing.name}: {missing.reason}"))
    flat = {f"edit_{figure.name}": figure.after for figure in figures.measured}
    before = {
        f"edit_{figure.name}_before": figure.before
        for figure in figures.measured
        if figure.before is not None
    }
    return flat | before


def draw_edit(pipeline: EditPipeline, settings: EvaluationSettings, say: Say) -> Drawing:
    """Draw the edited scene, and the scene it was made from.

    Args:
        pipeline: with the edited scene loaded, as it is again afterwards.
        settings: views, size and descriptions.
        say: for a display.

    Raises:
        InputError: when the source scene is gone.
    """
    shown = EvaluationViews(pipeline, settings)
    say(f"drawing the edited scene, {shown.count} views")
    after = shown.draw()
    say(f"drawing the scene before the edit, {shown.count} views")
    with source_scene(pipeline):
        before = shown.draw()
    return shown.compare(before, after)


@dataclass(frozen=True)
class Drawn:
    """A scene from the cameras of `EvaluationViews`.

    Attributes:
        views: as pinhole cameras see it.
        photographed: (E, 3, H, W), 0..1, with the distortion of the lens, as the evaluation photos have it;
            None where there is no known edit to compare with.
    """

    views: PosedPictures
    photographed: Tensor | None


class EvaluationViews:
    """The cameras from which a scene is drawn before and after an edit, and what it is compared with.

    Args:
        pipeline: of the edit; whatever scene it holds is drawn.
        settings: views, size and descriptions.
    """

    def __init__(self, pipeline: EditPipeline, settings: EvaluationSettings) -> None:
        manager, config = pipeline.datamanager, pipeline.config
        size = view_size(manager.train_dataset.cameras, settings.size or config.picture_size, 1)
        self._pipeline, self._settings, self._size = pipeline, settings, size
        self._cameras, self._indices = manager.eval_cameras(*size, settings.views)
        self._pinholes = with_neighbours(self._cameras, manager.train_cameras(*size))
        self._answers = answers_to(settings.instruction or pipeline.prompt.value)

    @property
    def count(self) -> int:
        """Views that are drawn of a scene."""
        return len(self._pinholes.cameras) + (len(self._cameras) if self._answers else 0)

    def draw(self) -> Drawn:
        """The scene that the pipeline holds now."""
        views = render_with_depth(self._pipeline.model, self._pinholes.cameras)
        return Drawn(views, self._pipeline.draw(self._cameras) if self._answers else None)

    def compare(self, before: Drawn, after: Drawn) -> Drawing:
        """What is measured of an edit: the scene before it and after it."""
        pipeline, settings, manager = self._pipeline, self._settings, self._pipeline.datamanager
        known = None
        if before.photographed is not None and after.photographed is not None:
            photos = before.photographed
            if not pipeline.config.source_was_edited:
                photos = manager.eval_photos(self._indices, *self._size).cpu()
            known = nearest_answer(self._answers, photos, before.photographed, after.photographed)
        text, source_text = settings.text, settings.source_text
        # Edits that sample pictures have no source prompt: theirs is an instruction.
        if source_prompt := getattr(pipeline.config, "source_prompt", ""):
            text, source_text = text or pipeline.prompt.value, source_text or source_prompt
        edit = DrawnEdit(
            before=before.views,
            after=after.views,
            count=self._pinholes.count,
            short=self._pinholes.short,
            long=self._pinholes.long,
            known=known,
            inside=self._inside(before.views),
            source_text=source_text,
            text=text,
        )
        return Drawing(edit, self._pinholes, manager.eval_names(self._indices))

    def _inside(self, before: PosedPictures) -> Tensor | None:
        """Which pixels of the evaluation views show something in the region, (E, H, W); None without one."""
        contains = self._pipeline.inside
        if contains is None:
            return None
        return contains(seen_points(before)[: self._pinholes.count].to(self._pipeline.device)).cpu()


def nearest_answer(
    answers: Mapping[str, Callable[[Tensor], Tensor]], photos: Tensor, before: Tensor, after: Tensor
) -> KnownEdit:
    """Of several right answers to an ambiguous instruction, the one that the edit is nearest to.

    One answer for all views: half of them red and half of them cyan is not a right answer.

    Args:
        answers: operators by name, at least one.
        photos: (E, 3, H, W), 0..1, of the evaluation views.
        before: renders of the source scene from the same cameras.
        after: renders of the edited scene.
    """
    pictures = {name: apply(photos) for name, apply in answers.items()}
    name = max(pictures, key=lambda name: float(psnr(after, pictures[name]).mean()))
    return KnownEdit(name, pictures[name], before, after)


def versions() -> dict[str, str]:
    """Of this package and of those that the figures depend on."""
    packages = ("nerfstudio", "torch", "torchvision", "torchmetrics", "transformers")
    return {
        "csd_nerf": csd_nerf.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _run_facts(run: EditedRun) -> dict[str, Any]:
    pipeline = run.pipeline
    return {
        "run": str(run.folder),
        "method": run.method,
        "prompt": pipeline.prompt.value,
        "prior": pipeline.config.asked,
        "seed": run.seed,
        "steps": run.steps,
        "checkpoint": run.checkpoint.name,
        "source": str(pipeline.config.source_checkpoint),
    }


def view_facts(drawing: Drawing) -> dict[str, Any]:
    """What was drawn: views, size, baselines, descriptions."""
    edit, pinholes = drawing.edit, drawing.pinholes
    height, width = edit.after.images.shape[-2:]
    return {
        "known_edit": edit.known.name if edit.known else None,
        "text": edit.text,
        "source_text": edit.source_text,
        "views": {
            "photos": drawing.names,
            "height": height,
            "width": width,
            "short_baseline_degrees": [round(angle, 2) for angle in pinholes.short.degrees],
            "long_baseline_degrees": [round(angle, 2) for angle in pinholes.long.degrees],
            "depth_tolerance": TOLERANCE,
        },
    }
