"""The options of `csd-nerf translate`, and its course."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import tyro
from typing_extensions import Self

from csd_nerf.devices import Device, present_device
from csd_nerf.editors.base_command import EditCommand, print_paths
from csd_nerf.errors import check
from csd_nerf.translation.settings import TranslatorSettings

if TYPE_CHECKING:
    from csd_nerf.editors.saving import FileObserver
    from csd_nerf.translation.crops import Crops
    from csd_nerf.translation.model_file import TrainedTranslator


@dataclass(kw_only=True)
class Train(TranslatorSettings, EditCommand):  # in this order its own numbers of steps and so on count
    """Train a small network that makes one edit, or one of a few, of any picture in milliseconds.

    It learns from a folder of pictures what a diffusion model asks for in them; nobody need have edited any.
    """

    settings_type = TranslatorSettings
    size_option = "--size"
    repeated = ("prompt",)

    input: Annotated[Path, tyro.conf.arg(name="data")]
    """Folder of pictures like those that are to be translated, of any sizes."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the translator is to be: NAME.safetensors."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to change, as an instruction; a description for a text-to-image prior. May be given several times:
    each becomes a target of the same translator."""
    preview_every: int = 50
    """Steps between previews (OUTPUT-preview.jpg, removed in the end); 0 for none."""
    page: bool = True
    """Also write a page with pictures before and after, as OUTPUT.html."""

    def prompts(self) -> tuple[str, ...]:
        return self.prompt

    def run(self) -> None:
        """Train, and write the translator.

        Raises:
            InputError: for pictures, options or an output that cannot be used.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console

        from csd_nerf.files import check_output
        from csd_nerf.translation.crops import Pictures, folder_of_pictures
        from csd_nerf.translation.model_file import check_translator_output, save_translator
        from csd_nerf.translation.training import train_translator

        self.check(self.prompts())
        self.check_paths()
        check_translator_output(self.output, force=self.force)
        if self.page:
            check_output(self.beside(".html"), (".html",), force=self.force)
        files = folder_of_pictures(self.input)

        console = Console()
        with self.watched(console) as observer:
            translator, material = train_translator(
                Pictures(files), self.prompts(), self.settings(), observer=observer
            )
            save_translator(translator, self.output)
        written = [self.output]
        if self.page:
            written.append(self._write_page(translator, material, len(files), observer))
        print_paths(console, written)

    def called(self) -> list[str]:
        return ["translate", "train", "--data", str(self.input)]

    def _write_page(
        self, translator: "TrainedTranslator", material: "Crops", count: int, observer: "FileObserver"
    ) -> Path:
        import torch

        from csd_nerf.editors.edit_page import picture_element
        from csd_nerf.translation.training import SHOWN

        before = material.shown(SHOWN)
        rows = [
            torch.cat([translator.translate(picture, target) for picture in before], dim=2)
            for target in range(len(self.prompt))
        ]
        sources = torch.cat([torch.cat(list(before), dim=2)] * len(rows), dim=1)
        return self.write_page(
            what=f"{count} pictures that a translator learnt from",
            before=picture_element(sources, "before"),
            after=picture_element(torch.cat(rows, dim=1), "after"),
            observer=observer,
        )


@dataclass(kw_only=True)
class Apply:
    """Translate a picture, a folder of pictures or a clip, without a diffusion model."""

    model: tyro.conf.Positional[Path]
    """The translator that `csd-nerf translate train` wrote."""
    input: tyro.conf.Positional[Path]
    """A picture, a folder of pictures, or a clip."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the translation is to be: a picture's name for a picture; NAME.mp4, NAME.gif or a NAME without an
    ending (a folder of PNGs) for a clip; a NAME without an ending for a folder, whose pictures keep their
    names. After an interruption the same command does what is missing."""
    prompt: Optional[str] = None  # noqa: UP045
    """Which of the translator's targets. Of one that has but one, that."""
    force: bool = False
    """Replace an output that is there."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""

    def run(self) -> None:
        """Translate, and write what was asked for.

        Raises:
            InputError: for a translator, an input or an output that cannot be used.
        """
        from rich.console import Console

        from csd_nerf.translation.applying import translate_files
        from csd_nerf.translation.model_file import load_translator

        check(
            self.output.resolve() != self.input.resolve(),
            "the output would replace the source",
            expected="another name for the output",
            got=self.output,
            hint="choose another --output",
        )
        translator = load_translator(self.model, present_device(self.device))
        console = Console()
        target = translator.target(self.prompt)
        translate_files(translator, target, self.input, self.output, force=self.force, console=console)
        print_paths(console, [self.output])


@dataclass(kw_only=True)
class Translate:
    """Train a small network that makes an edit of any picture in milliseconds, or apply one."""

    command: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[
            Union[  # noqa: UP007 - the form that tyro resolves on every Python
                Annotated[Train, tyro.conf.subcommand("train")],
                Annotated[Apply, tyro.conf.subcommand("apply")],
            ]
        ]
    ]

    def with_recipe(self, arguments: Sequence[str]) -> Self:
        """These options, and those of a recipe where they were not given, see `EditCommand.with_recipe`."""
        if isinstance(self.command, Train):
            return dataclasses.replace(self, command=self.command.with_recipe(arguments))
        return self

    def run(self) -> Any:
        """What was asked for.

        Raises:
            InputError: see `Train.run` and `Apply.run`.
        """
        return self.command.run()
