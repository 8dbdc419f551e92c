"""The options of `csd-nerf image` and `csd-nerf panorama`, and their course."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from csd_nerf.editors.settings import PictureSettings
from csd_nerf.errors import InputError, is_out_of_memory

if TYPE_CHECKING:
    from csd_nerf.editors.saving import FileObserver
    from csd_nerf.media import Picture


@dataclass(kw_only=True)
class PictureCommand(PictureSettings):
    """Options that `image` and `panorama` share."""

    input: tyro.conf.Positional[Path]
    """The picture: PNG, JPEG, WebP or TIFF, in colour or grey, 8 or 16 bits, with or without alpha."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the edited picture is to be; its ending says the format. EXIF, colour profile and alpha are kept
    where the format can."""
    force: bool = False
    """Replace an output that is there, and begin again where another edit of it was left unfinished."""
    recipe: Optional[str] = None  # noqa: UP045
    """A YAML file of options by their names, such as `prior: tiny-instruct`. Options given beside it win,
    unless they equal their default."""
    preview_every: int = 10
    """Steps between previews (OUTPUT-preview.jpg, removed in the end); 0 for none."""
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

        from csd_nerf.editors.saving import FileObserver, Unfinished
        from csd_nerf.media import read_picture, write_picture

        command = self._with_recipe()
        command.check(command.prompts())
        command.check_outputs()
        picture = read_picture(command.input)
        command.check_outputs((picture.pixels.shape[1], picture.pixels.shape[2]))
        console = Console()
        unfinished = Unfinished(command.output)
        observer = FileObserver(
            console,
            unfinished,
            fresh=command.force,
            preview_every=command.preview_every,
            write_preview=command.write_preview,
        )
        try:
            with observer:
                edited = dataclasses.replace(picture, pixels=command.edit(picture, observer))
        except KeyboardInterrupt:
            if unfinished.path.exists():
                console.print(
                    f"\nStopped after {observer.steps} steps; the edit so far is kept in {unfinished.path}. "
                    "The same command goes on from there.",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                "memory ran out",
                expected="room for the prior and a batch of windows",
                got=str(error).splitlines()[0],
                hint="turn down --unet-batch-size, then --window-size; what was done is kept, and the same "
                "command with a smaller batch goes on from there",
            ) from error
        write_picture(edited, command.output, force=command.force)
        unfinished.remove()
        command._beside("-preview.jpg").unlink(missing_ok=True)
        written = [command.output, *command._write_extras(picture, edited, observer)]
        for path in written:
            console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)

    def prompts(self) -> tuple[str, ...]:
        """All of them."""
        raise NotImplementedError

    def edit(self, picture: "Picture", observer: "FileObserver") -> Any:
        """The edited pixels (3, H, W) of a picture."""
        raise NotImplementedError

    def settings(self) -> PictureSettings:
        """The options that decide the edit, by themselves."""
        names = [field.name for field in dataclasses.fields(PictureSettings)]
        return PictureSettings(**{name: getattr(self, name) for name in names})

    def check_outputs(self, size: Optional[tuple[int, int]] = None) -> None:  # noqa: UP045
        """See that everything can be written, before anything is done.

        Args:
            size: height and width of the picture, once it is known.

        Raises:
            InputError: it cannot.
        """
        from csd_nerf.media import check_output, check_picture_output

        if self.preview_every < 0:
            raise InputError(
                "--preview-every cannot be used",
                expected="a number of steps, or 0 for no previews",
                got=str(self.preview_every),
                hint="change it, or leave out --preview-every",
            )
        if self.output.resolve() == self.input.resolve():
            raise InputError(
                "the output would replace the source",
                expected="another name for the output",
                got=str(self.output),
                hint="choose another --output",
            )
        check_picture_output(self.output, force=self.force, size=size)
        for ending, wanted in (("-comparison.png", self.comparison), (".html", self.page)):
            if wanted:
                path = self._beside(ending)
                check_output(path, (path.suffix,), force=self.force)

    def write_preview(self, pixels: Any) -> None:
        """Show the edit so far."""
        from csd_nerf.media import Picture, write_picture

        write_picture(Picture(pixels), self._beside("-preview.jpg"), force=True)

    def _beside(self, ending: str) -> Path:
        return self.output.with_name(f"{self.output.stem}{ending}")

    def _with_recipe(self) -> "PictureCommand":
        """These options, and those of the recipe where they have their defaults."""
        if self.recipe is None:
            return self
        from csd_nerf.recipes import apply_recipe

        command, usual = dataclasses.replace(self), type(self)(input=self.input, output=self.output)
        apply_recipe(command, usual, type(self).__name__.lower(), self.recipe)
        return command

    def _write_extras(self, before: "Picture", after: "Picture", observer: "FileObserver") -> list[Path]:
        from csd_nerf.editors.page import picture_element, side_by_side, write_page
        from csd_nerf.media import Picture, write_picture

        written = []
        if self.comparison:
            written.append(self._beside("-comparison.png"))
            both = Picture(side_by_side(before.pixels, after.pixels), icc_profile=before.icc_profile)
            write_picture(both, written[-1], force=self.force)
        if self.page:
            written.append(self._beside(".html"))
            height, width = before.pixels.shape[1:]
            settings = self.settings()
            config = settings.objective_config()
            write_page(
                written[-1],
                prompts=self.prompts(),
                intro=f"{self.input.name}, {width} x {height} pixels, edited by {self.method} with "
                f"{self.prior}.",
                before=picture_element(before.pixels, "before"),
                after=picture_element(after.pixels, "after"),
                command=self.command_line(),
                settings={
                    "method": self.method,
                    "prior": self.prior,
                    "steps": settings.descent().steps,
                    "learning rate": settings.descent().learning_rate,
                    "text guidance": config.text_guidance,
                    "image guidance": config.image_guidance,
                    "timesteps": f"{config.min_timestep} to {config.max_timestep} of the schedule",
                    "transport": config.transport,
                    "seed": self.seed,
                },
                seconds=observer.seconds,
            )
        return written

    def command_line(self) -> list[str]:
        """The command with these options, defaults left out."""
        words = ["csd-nerf", type(self).__name__.lower(), str(self.input)]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "input" or value == field.default:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{flag}", *map(str, values)]
        return words


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
        from csd_nerf.editors.pictures import edit_image

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
    """Instead of bands, a picture for each prompt, of the input's size: white where it counts, black where
    not."""
    feather: Optional[int] = None  # noqa: UP045
    """Width in pixels over which regions fade into each other. Default half a window."""

    def prompts(self) -> tuple[str, ...]:
        return self.prompt or ("",)

    def edit(self, picture: "Picture", observer: "FileObserver") -> Any:
        from csd_nerf.editors.pictures import edit_panorama
        from csd_nerf.media import read_picture

        return edit_panorama(
            picture.pixels,
            self.prompt,
            self.settings(),
            wrap=self.wrap,
            shares=self.bands or None,
            masks=[read_picture(mask).pixels.mean(0) for mask in self.masks] or None,
            feather=self.feather,
            observer=observer,
        )
