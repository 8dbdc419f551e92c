"""The options of `csd-nerf video`, and its course."""

import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from csd_nerf.editors.base_command import EditCommand, print_paths
from csd_nerf.editors.settings import VideoSettings
from csd_nerf.errors import check

if TYPE_CHECKING:
    from csd_nerf.editors.saving import FileObserver
    from csd_nerf.media import Clip


@dataclass(kw_only=True)
class Video(EditCommand, VideoSettings):
    """Edit a clip of any length by text.

    All frames are edited together, in groups that share frames from all over the clip, so that it stays one
    clip. Frame rate and sound are kept. Memory does not grow with the length but for the latents.
    """

    settings_type = VideoSettings
    size_option = "--size"

    input: tyro.conf.Positional[Path]
    """The clip: a video in any common container, a GIF, or a folder of pictures, taken by their numbers."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the edited clip is to be: NAME.mp4 (with the sound), NAME.gif, or a NAME without an ending for a
    folder of PNGs."""
    prompt: str = ""
    """What to change, as an instruction: "make it night"; a description for a text-to-image prior."""
    frame_rate: Optional[float] = None  # noqa: UP045
    """Frames per second of a folder of pictures. Default 24; a file has its own."""
    comparison: bool = True
    """Also write both clips side by side, as OUTPUT-comparison.mp4."""
    page: bool = True
    """Also write a page with a before/after slider, as OUTPUT.html."""

    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def run(self) -> None:
        """Edit, and write what was asked for.

        Raises:
            InputError: for input, options or an output that cannot be used.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console

        from csd_nerf.editors.edit_videos import edit_video
        from csd_nerf.media import read_clip, write_clip

        writes = self.meet()
        self.check(self.prompts())
        self.check_outputs()
        clip = read_clip(self.input, self.exact_frame_rate())
        console = Console(quiet=not writes)
        with self.watched(console) as observer:
            edited = edit_video(clip, self.prompt, self.settings(), observer=observer)
            frames = edited.decoded(observer)
            if writes:
                write_clip(frames, self.output, like=clip, force=self.force)
            else:
                deque(frames, maxlen=0)
        if writes:
            extras = self._write_extras(clip, (edited.height, edited.width), observer)
            print_paths(console, [self.output, *extras])

    def exact_frame_rate(self) -> Optional[Fraction]:  # noqa: UP045
        """The frame rate as a fraction: 29.97 is 30000/1001.

        Raises:
            InputError: it is no rate.
        """
        if self.frame_rate is None:
            return None
        check(
            0 < self.frame_rate < 1000,
            "--frame-rate",
            expected="frames per second, above 0 and below 1000",
            got=self.frame_rate,
            hint="change it, or leave it out for 24",
        )
        # The rates of television are thousandths below whole ones.
        broadcast = Fraction(round(self.frame_rate) * 1000, 1001)
        near = abs(broadcast - Fraction(self.frame_rate)) < Fraction(1, 200)
        return broadcast if near else Fraction(self.frame_rate).limit_denominator(1000)

    def check_outputs(self) -> None:
        """See that everything can be written, before anything is done.

        Raises:
            InputError: it cannot.
        """
        from csd_nerf.files import check_output
        from csd_nerf.media import check_clip_output

        self.check_paths()
        check_clip_output(self.output, force=self.force)
        for ending, wanted in (("-comparison.mp4", self.comparison), (".html", self.page)):
            if wanted:
                path = self.beside(ending)
                check_output(path, (path.suffix,), force=self.force)

    def _write_extras(self, clip: "Clip", size: tuple[int, int], observer: "FileObserver") -> list[Path]:
        from csd_nerf.editors.edit_page import clip_element, side_by_side
        from csd_nerf.editors.edit_videos import resized
        from csd_nerf.media import read_clip, write_clip

        height, width = size
        # As it was written: decoding the latents once more would take longer.
        edited = read_clip(self.output, clip.frame_rate if self.output.is_dir() else None)

        def source() -> Iterator[Any]:
            return (resized(frame, height, width) for frame in clip)

        written = []
        if self.comparison:
            pairs = zip(source(), edited, strict=True)
            both = (side_by_side(before, after[:, :height, :width]) for before, after in pairs)
            written.append(self.beside("-comparison.mp4"))
            write_clip(both, written[-1], like=clip, force=self.force)
        if self.page:
            with tempfile.TemporaryDirectory() as folder:
                elements = {}
                for role, frames in (("before", source()), ("after", iter(edited))):
                    video = Path(folder) / f"{role}.mp4"
                    write_clip(frames, video, frame_rate=clip.frame_rate)
                    elements[role] = clip_element(video, role)
            what = f"{len(clip)} frames of {clip.width} x {clip.height} pixels reduced to {width} x {height}"
            written.append(self.write_page(what=what, **elements, observer=observer))
        return written
