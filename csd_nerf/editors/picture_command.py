"""The options of `csd-nerf image` and `csd-nerf panorama`, and their course."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from csd_nerf.editors.base_command import EditCommand, print_paths
from csd_nerf.editors.settings import PictureSettings

if TYPE_CHECKING:
    from csd_nerf.editors.saving import FileObserver
    from csd_nerf.media import Picture


@dataclass(kw_only=True)
class PictureCommand(EditCommand, PictureSettings):
    """Options that `image` and `panorama` share."""

    settings_type = PictureSettings
    size_option = "--window-size"

    input: tyro.conf.Positional[Path]
    """The picture: PNG, JPEG, WebP or TIFF, in colour or grey, 8 or 16 bits, with or without alpha."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the edited picture is to be; its ending says the format. EXIF, colour profile and alpha are kept
    where the format can."""
    comparison: bool = True
    """Also write both pictures side by side, as OUTPUT-comparison.png."""
    page: bool = True
    """Also write a page with a before/after slider, as OUTPUT.html."""

    def run(self) -> None:
        """Edit, and write what was asked for.

        Raises:
            InputError: for input, options or an output that cannot be used.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console

        from csd_nerf.media import read_picture, write_picture

        writes = self.meet()
        self.check(self.prompts())
        self.check_outputs()
        picture = read_picture(self.input)
        self.check_outputs((picture.pixels.shape[1], picture.pixels.shape[2]))
        console = Console(quiet=not writes)
        with self.watched(console) as observer:
            edited = dataclasses.replace(picture, pixels=self.edit(picture, observer))
            if writes:
                write_picture(edited, self.output, force=self.force)
        if writes:
            print_paths(console, [self.output, *self._write_extras(picture, edited, observer)])

    def edit(self, picture: "Picture", observer: "FileObserver") -> Any:
        """The edited pixels (3, H, W) of a picture."""
        raise NotImplementedError

    def check_outputs(self, size: Optional[tuple[int, int]] = None) -> None:  # noqa: UP045
        """See that everything can be written, before anything is done.

        Args:
            size: height and width of the picture, once it is known.

        Raises:
            InputError: it cannot.
        """
        from csd_nerf.files import check_output
        from csd_nerf.media import check_picture_output

        self.check_paths()
        check_picture_output(self.output, force=self.force, size=size)
        for ending, wanted in (("-comparison.png", self.comparison), (".html", self.page)):
            if wanted:
                path = self.beside(ending)
                check_output(path, (path.suffix,), force=self.force)

    def _write_extras(self, before: "Picture", after: "Picture", observer: "FileObserver") -> list[Path]:
        from csd_nerf.editors.edit_page import picture_element, side_by_side
        from csd_nerf.media import Picture, write_picture

        written = []
        if self.comparison:
            written.append(self.beside("-comparison.png"))
            both = Picture(side_by_side(before.pixels, after.pixels), icc_profile=before.icc_profile)
            write_picture(both, written[-1], force=self.force)
        if self.page:
            height, width = before.pixels.shape[1:]
            page = self.write_page(
                what=f"{width} x {height} pixels",
                before=picture_element(before.pixels, "before"),
                after=picture_element(after.pixels, "after"),
                observer=observer,
            )
            written.append(page)
        return written


@dataclass(kw_only=True)
class Image(PictureCommand):
    """Edit a picture of any size by text.

    Large pictures are edited in windows that share their scores; small ones are continued by reflection for
    the edit and come back at their size.
    """

    prompt: str = ""
    """What to change, as an instruction: "make it night"; a description for a text-to-image prior."""

    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def edit(self, picture: "Picture", observer: "FileObserver") -> Any:
        from csd_nerf.editors.edit_pictures import edit_image

        return edit_image(picture.pixels, self.prompt, self.settings(), observer=observer)


@dataclass(kw_only=True)
class Panorama(PictureCommand):
    """Edit a wide or large picture by text, by regions if there are several prompts.

    The picture is edited in overlapping windows that share their scores, at any size, in bounded memory.
    """

    prompt: tuple[str, ...] = ()
    """What to change; or several, each for a region, from left to right."""
    wrap: bool = False
    """The right edge continues at the left one: an equirectangular picture of a full sphere."""
    bands: tuple[float, ...] = ()
    """Shares of the width that the prompts take from left to right, together 1. Default all alike."""
    masks: tuple[Path, ...] = ()
    """Instead of bands, a picture for each prompt, of the input's size: white where it counts, black or
    transparent where not."""
    feather: Optional[int] = None  # noqa: UP045
    """Width in pixels over which regions fade into each other. Default half a window."""

    def prompts(self) -> tuple[str, ...]:
        return self.prompt or ("",)

    def edit(self, picture: "Picture", observer: "FileObserver") -> Any:
        from csd_nerf.editors.edit_pictures import edit_panorama
        from csd_nerf.media import read_picture

        return edit_panorama(
            picture.pixels,
            self.prompt,
            self.settings(),
            wrap=self.wrap,
            shares=self.bands or None,
            masks=[read_picture(mask).whiteness for mask in self.masks] or None,
            feather=self.feather,
            observer=observer,
        )
