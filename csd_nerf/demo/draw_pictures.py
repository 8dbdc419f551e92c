"""`python -m csd_nerf.demo.draw_pictures`: a scene before and after its edit, as pictures and as a turntable.

Opens the edited run as `ns-viewer` and `ns-render` do: no diffusion model is loaded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from csd_nerf.errors import exit_on_input_error

FACTS = "facts.json"


@dataclass
class PictureOptions:
    """Draw a scene before and after its edit: before-N.png, after-N.png, before-after.png, turntable.mp4."""

    run: Path
    """Run folder of the edit."""
    output: Path
    """Folder for the pictures."""
    size: int = 256
    """Short side of the pictures, in pixels."""
    views: int = 4
    """How many evaluation cameras to draw."""
    turntable_size: int = 160
    """Short side, in pixels, of each of the two pictures in the video."""
    turntable_frames: int = 48
    """Frames of the video: once around, or to and fro before a capture of one side."""
    frames_per_second: int = 10
    """Of the video."""
    known_edits: bool = False
    """Also draw the true edit (truth-N.png), where the prompt is the instruction of an exact operator, and
    measure against it."""


def main() -> None:
    """Read the command line and draw, printing a line per frame of the video."""
    with exit_on_input_error():
        draw(tyro.cli(PictureOptions, prog="python -m csd_nerf.demo.draw_pictures"))


def draw(options: PictureOptions) -> None:
    """Draw everything; the video is written last, so that its presence says all is there.

    Raises:
        InputError: when the run is not an edit, or its source scene is gone.
    """
    import torch

    from csd_nerf.cameras import turntable_cameras, view_size
    from csd_nerf.nerf.edited_run import open_edited_run
    from csd_nerf.nerf.sheets import save_png, save_video, sheet
    from csd_nerf.nerf.source_scene import source_scene
    from csd_nerf.scenes.operators import answers_to

    pipeline = open_edited_run(options.run).pipeline
    manager = pipeline.datamanager
    captured = manager.train_dataset.cameras.to(pipeline.device)
    views, shown = manager.eval_cameras(*view_size(captured, options.size, 2), options.views)
    orbit = turntable_cameras(
        captured, options.turntable_frames, *view_size(captured, options.turntable_size, 2)
    )
    progress = _Progress(2 * len(orbit))

    def frames() -> Iterator[Any]:
        for index in range(len(orbit)):
            progress.step()
            yield pipeline.draw(orbit[index : index + 1])[0]

    with torch.no_grad():
        after, after_orbit = pipeline.draw(views), list(frames())
        with source_scene(pipeline):
            before, before_orbit = pipeline.draw(views), list(frames())
    rows = {"before": before, "after": after}
    facts: dict[str, Any] = {"prompt": pipeline.config.prompt, "views": len(before)}
    answers = list(answers_to(pipeline.config.prompt).values())
    if options.known_edits and len(answers) == 1:
        photo_side = int(torch.minimum(captured.height, captured.width).min())
        photos = manager.eval_photos(shown, *view_size(captured, photo_side, 1))
        truth = answers[0](photos.cpu())
        facts["psnr"] = {name: round(_psnr(pictures, truth), 2) for name, pictures in rows.items()}
        rows["truth"] = truth
    for name, pictures in rows.items():
        for number, picture in enumerate(pictures, start=1):
            save_png(picture.permute(1, 2, 0), options.output / f"{name}-{number}.png")
    save_png(sheet([before, after]), options.output / "before-after.png")
    (options.output / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf8")
    both = (sheet([torch.stack(pair)]) for pair in zip(before_orbit, after_orbit, strict=True))
    save_video(both, options.output / "turntable.mp4", options.frames_per_second)


class _Progress:
    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def step(self) -> None:
        self.done += 1
        print(f"{self.done} ({100 * self.done / self.total:.2f}%)", flush=True)


def _psnr(images: Any, target: Any) -> float:
    """Peak signal-to-noise ratio in dB, mean over pictures (V, 3, H, W) in 0..1, at the target's size."""
    from torch.nn.functional import interpolate

    from csd_nerf.evaluation.pixels import psnr

    return float(psnr(interpolate(images, target.shape[-2:], mode="area"), target).mean())


if __name__ == "__main__":
    main()
