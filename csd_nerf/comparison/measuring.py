"""`python -m csd_nerf.comparison.measuring`: figures, pictures and video of one edit of a comparison."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import tyro

from csd_nerf.errors import exit_on_input_error, memory_explained
from csd_nerf.nerf.evaluate_command import LESS, ROOM

if TYPE_CHECKING:
    from torch import Tensor

    from csd_nerf.evaluation.figures import Evaluation
    from csd_nerf.nerf.edit_pipeline import EditPipeline
    from csd_nerf.nerf.evaluate_run import Drawing, EvaluationSettings

JPEG_QUALITY = 85
FRAMES_PER_SECOND = 8


@dataclass
class Measuring:
    """Measure a run of an editing method, or edit the views of a scene one by one and measure that."""

    output: Path
    """Folder for evaluation.json, after-N.jpg and turntable.mp4."""
    source_output: Path
    """Folder for before-N.jpg and the turntable of the scene before the edit, which all edits share."""
    instruction: str
    """What was asked for."""
    views: int
    """Evaluation cameras."""
    size: int
    """Short side of the views, in pixels."""
    clip: str
    """CLIP to measure with."""
    run: Optional[Path] = None  # noqa: UP045 - the form that tyro resolves
    """Run folder of the edit."""
    scene: Optional[Path] = None  # noqa: UP045
    """Run folder or checkpoint of a scene, to edit its views one by one."""
    data: Optional[Path] = None  # noqa: UP045
    """Dataset of the scene; that of its run otherwise."""
    recipe: Optional[str] = None  # noqa: UP045
    """Of the edits one by one."""
    seed: int = 0
    """Of the edits one by one."""
    steps: int = 20
    """Sampling steps of the edits one by one."""
    text: str = ""
    """What the edited scene shows."""
    source_text: str = ""
    """What the scene shows before."""
    turntable_frames: int = 0
    """Frames of the video; 0 for none."""
    download: bool = False
    """Fetch weights that are not on this machine."""


def main() -> None:
    """Read the command line; draw and measure, printing a line per frame of the video."""
    with exit_on_input_error(), memory_explained(expected=ROOM, hint=LESS):
        carry_out(tyro.cli(Measuring, prog="python -m csd_nerf.comparison.measuring"))


def carry_out(options: Measuring) -> None:
    """Draw, measure and write; the figures last, so that their presence says all is there.

    Raises:
        InputError: the run or scene cannot be opened.
    """
    import torch

    from csd_nerf.nerf.evaluate_run import EvaluationSettings

    settings = EvaluationSettings(
        views=options.views,
        size=options.size,
        text=options.text,
        source_text=options.source_text,
        clip=options.clip,
        download=options.download,
        instruction=options.instruction,
    )
    with torch.no_grad():
        edit = (
            _measured_run(options, settings) if options.run is not None else _edited_views(options, settings)
        )
        _report(1, options)
        shown = edit.drawing.edit
        _save_views(shown.after.images[: shown.count], options.output, "after")
        _save_views(shown.before.images[: shown.count], options.source_output, "before")
        if options.turntable_frames:
            _save_videos(edit, options)
    edit.evaluation.write(options.output / "evaluation.json")


@dataclass(frozen=True)
class _Edit:
    """An edit that was measured.

    Attributes:
        evaluation, drawing: of its views.
        pipeline: that draws the scene.
        source: a context in which the pipeline holds the scene before the edit.
        finish: turns a frame that the pipeline draws into the edited one.
    """

    evaluation: "Evaluation"
    drawing: "Drawing"
    pipeline: "EditPipeline"
    source: Callable[[], AbstractContextManager[None]]
    finish: Callable[["Tensor"], "Tensor"]


def _measured_run(options: Measuring, settings: "EvaluationSettings") -> _Edit:
    from csd_nerf.nerf.edited_run import open_edited_run
    from csd_nerf.nerf.evaluate_run import draw_edit, evaluate_drawing
    from csd_nerf.nerf.source_scene import source_scene

    assert options.run is not None
    run = open_edited_run(options.run)
    drawing = draw_edit(run.pipeline, settings, print)
    evaluation = evaluate_drawing(run, drawing, settings, print)
    return _Edit(evaluation, drawing, run.pipeline, lambda: source_scene(run.pipeline), lambda frames: frames)


def _edited_views(options: Measuring, settings: "EvaluationSettings") -> _Edit:
    from csd_nerf.comparison.budget import PER_VIEW
    from csd_nerf.comparison.per_view import PerViewEditor, open_scene
    from csd_nerf.evaluation.figures import Evaluation
    from csd_nerf.evaluation.measure import load_networks, measure
    from csd_nerf.nerf.cost import NOTHING, CostMeter
    from csd_nerf.nerf.evaluate_run import EvaluationViews, versions, view_facts

    assert options.scene is not None, "either --run or --scene is given"
    pipeline = open_scene(options.scene, data=options.data, prompt=options.instruction, recipe=options.recipe)
    views = EvaluationViews(pipeline, settings)
    before = views.draw()
    editor = PerViewEditor(
        options.instruction,
        recipe=options.recipe,
        seed=options.seed,
        steps=options.steps,
        device=pipeline.device,
    )
    meter = CostMeter(NOTHING, pipeline.device)
    after = editor.edit_drawn(before)
    cost = meter.total(steps=editor.pictures, unet_evaluations=editor.unet_evaluations)
    drawing = views.compare(before, after)
    networks = load_networks(pipeline.device, clip=options.clip, download=options.download)
    facts: dict[str, Any] = {
        "run": None,
        "method": PER_VIEW,
        "prompt": options.instruction,
        "prior": editor.prior,
        "seed": options.seed,
        "steps": options.steps,
        "source": str(pipeline.config.source_checkpoint),
        **view_facts(drawing),
        "versions": versions(),
    }
    evaluation = Evaluation(facts, measure(drawing.edit, networks), asdict(cost))
    return _Edit(evaluation, drawing, pipeline, nullcontext, editor.edit)


def _save_views(images: "Tensor", folder: Path, name: str) -> None:
    """The pictures of some views, spread over all of them."""
    import torch
    from PIL import Image

    from csd_nerf.comparison.jobs import PICTURES_SHOWN
    from csd_nerf.files import whole_file
    from csd_nerf.media import to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    chosen = torch.linspace(0, len(images) - 1, min(PICTURES_SHOWN, len(images))).round().long()
    for number, image in enumerate(images[chosen], start=1):
        with whole_file(folder / f"{name}-{number}.jpg") as partial:
            Image.fromarray(to_bytes(image.permute(1, 2, 0))).save(partial, "JPEG", quality=JPEG_QUALITY)


def _save_videos(edit: _Edit, options: Measuring) -> None:
    """The turntable after the edit and, when no other edit has drawn it, before."""
    import torch

    from csd_nerf.cameras import turntable_cameras, view_size
    from csd_nerf.comparison.jobs import VIDEO, VIDEO_SIZE
    from csd_nerf.nerf.sheets import save_video

    captured = edit.pipeline.datamanager.train_dataset.cameras.to(edit.pipeline.device)
    size = view_size(captured, min(options.size, VIDEO_SIZE) // 2 * 2, 2)
    orbit = turntable_cameras(captured, options.turntable_frames, *size)

    def frames(report: bool) -> Iterator["Tensor"]:
        for index in range(len(orbit)):
            yield edit.pipeline.draw(orbit[index : index + 1])
            if report:
                _report(2 + index, options)

    if not (options.source_output / VIDEO).exists():
        with edit.source():
            drawn = (frame[0].permute(1, 2, 0) for frame in frames(report=False))
            save_video(drawn, options.source_output / VIDEO, FRAMES_PER_SECOND)
    # At once: a picture's number decides its noise.
    edited = edit.finish(torch.cat(list(frames(report=True))))
    save_video((frame.permute(1, 2, 0) for frame in edited), options.output / VIDEO, FRAMES_PER_SECOND)


def _report(done: int, options: Measuring) -> None:
    """A line of progress, as nerfstudio prints it."""
    total = 1 + options.turntable_frames
    print(f"{done} ({100 * done / total:.2f}%)", flush=True)


if __name__ == "__main__":
    main()
