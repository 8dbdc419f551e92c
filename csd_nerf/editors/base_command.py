"""What the commands that edit pictures and clips have in common."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional

import tyro
from rich.text import Text
from typing_extensions import Self

from csd_nerf.editors.settings import EditSettings
from csd_nerf.errors import check, memory_explained

if TYPE_CHECKING:
    from rich.console import Console

    from csd_nerf.editors.saving import FileObserver


@dataclass(kw_only=True)
class EditCommand(EditSettings):
    """Options of every command, and the course of an edit that can be interrupted."""

    settings_type: ClassVar[type[EditSettings]]
    size_option: ClassVar[str]
    """That makes particles smaller."""
    repeated: ClassVar[tuple[str, ...]] = ()
    """Fields whose option is given once for each of several values."""

    input: tyro.conf.Positional[Path]
    """What to edit."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the edit is to be."""
    force: bool = False
    """Replace an output that is there, and begin again where another edit of it was left unfinished."""
    recipe: Optional[str] = None  # noqa: UP045
    """A YAML file of options by their names, such as `prior: tiny-instruct`. Options given beside it win."""
    preview_every: int = 10
    """Steps between previews (OUTPUT-preview.jpg, removed in the end); 0 for none."""

    def prompts(self) -> tuple[str, ...]:
        """All of them."""
        raise NotImplementedError

    def settings(self) -> Any:
        """The options that decide the edit, by themselves."""
        names = [field.name for field in dataclasses.fields(self.settings_type)]
        return self.settings_type(**{name: getattr(self, name) for name in names})

    def check_paths(self) -> None:
        """See that output and previews are as they can be.

        Raises:
            InputError: they are not.
        """
        check(
            self.preview_every >= 0,
            "--preview-every",
            expected="a number of steps, or 0 for no previews",
            got=self.preview_every,
        )
        check(
            self.output.resolve() != self.input.resolve(),
            "the output would replace the source",
            expected="another name for the output",
            got=self.output,
            hint="choose another --output",
        )

    def meet(self) -> bool:
        """Join the other processes that `torchrun` began; returns whether this one writes and prints."""
        from csd_nerf import ranks

        if ranks.launched():
            ranks.join(self.present_device())
        return ranks.leads()

    @contextmanager
    def watched(self, console: "Console") -> Iterator["FileObserver"]:
        """An observer for the edit; when it is interrupted, says how to go on."""
        from csd_nerf import ranks
        from csd_nerf.editors.saving import FileObserver, Unfinished
        from csd_nerf.files import alone, beside

        unfinished = Unfinished(self.output)
        observer = FileObserver(
            console,
            unfinished,
            writes=ranks.leads(),
            fresh=self.force,
            preview_every=self.preview_every,
            write_preview=self.write_preview,
        )
        room = memory_explained(
            expected="room for the prior and a batch of particles",
            hint=f"turn down --unet-batch-size, then {self.size_option}; what was done is kept, and the same "
            "command with a smaller batch goes on from there",
        )
        lock = beside(self.output, "lock")
        try:
            kept = alone(lock, of=self.output, hint="wait for it to end") if ranks.leads() else nullcontext()
            with kept, room, observer:
                yield observer
        except (KeyboardInterrupt, ranks.Parted):
            if ranks.leads() and unfinished.path.exists():
                stopped = (
                    f"\nStopped after {observer.steps} steps; the edit so far is kept in {unfinished.path}. "
                    "The same command goes on from there."
                )
                console.quiet = False
                console.print(Text(stopped), soft_wrap=True)
            raise
        if ranks.leads():
            unfinished.remove()
            self.beside("-preview.jpg").unlink(missing_ok=True)

    def write_preview(self, pixels: Any) -> None:
        """Show the edit so far."""
        from csd_nerf.media import Picture, write_picture

        write_picture(Picture(pixels), self.beside("-preview.jpg"), force=True)

    def beside(self, ending: str) -> Path:
        """A file next to the output, of its name and another ending."""
        return self.output.with_name(f"{self.output.stem}{ending}")

    def with_recipe(self, arguments: Sequence[str]) -> Self:
        """These options, and those of the recipe where they were not given.

        Args:
            arguments: of the command line that these options are from.

        Raises:
            InputError: see `apply_recipe`.
        """
        if self.recipe is None:
            return self
        from csd_nerf.settings_files import apply_recipe, options_given

        command = dataclasses.replace(self, recipe=None)
        # Whatever they were given as, no recipe decides on these.
        given = options_given(arguments) | {"input", "output", "recipe"}
        usual = type(self)(input=self.input, output=self.output)
        apply_recipe(command, usual, type(self).__name__.lower(), self.recipe, given)
        return command

    def write_page(self, *, what: str, before: str, after: str, observer: "FileObserver") -> Path:
        """Write OUTPUT.html.

        Args:
            what: the source, in a few words.
            before, after: HTML elements, see `csd_nerf.editors.edit_page`.
            observer: of the edit.
        """
        from csd_nerf.editors.edit_page import write_page

        settings = self.settings()
        config, descent = settings.objective_config(), settings.descent()
        path = self.beside(".html")
        write_page(
            path,
            prompts=self.prompts(),
            intro=f"{self.input.name}, {what}, edited by {self.method} with {self.prior}.",
            before=before,
            after=after,
            command=self.command_line(),
            settings={
                "method": self.method,
                "prior": self.prior,
                "steps": descent.steps,
                "learning rate": descent.learning_rate,
                "text guidance": config.text_guidance,
                "image guidance": config.image_guidance,
                "timesteps": f"{config.min_timestep} to {config.max_timestep} of the schedule",
                "transport": config.transport,
                "seed": self.seed,
            },
            seconds=observer.seconds,
        )
        return path

    def called(self) -> list[str]:
        """The command's name and input, as on a command line."""
        return [type(self).__name__.lower(), str(self.input)]

    def command_line(self) -> list[str]:
        """The command with these options, defaults left out."""
        words = ["csd-nerf", *self.called()]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "input" or value == field.default:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                values = list(map(str, value if isinstance(value, tuple) else (value,)))
                groups = [[each] for each in values] if field.name in self.repeated else [values]
                words += [word for group in groups for word in (f"--{flag}", *group)]
        return words


def print_paths(console: "Console", paths: Sequence[Path]) -> None:
    """List what was written."""
    for path in paths:
        console.print(Text(f"  {path}"), soft_wrap=True)
