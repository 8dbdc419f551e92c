"""The options of `csd-nerf probe`, and its course."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from csd_nerf.editors.base_command import EditCommand, print_paths
from csd_nerf.errors import check
from csd_nerf.probing.settings import ProbeSettings

if TYPE_CHECKING:
    from csd_nerf.editors.saving import FileObserver
    from csd_nerf.probing.clip_attributes import Seen
    from csd_nerf.probing.probing import Probed


@dataclass(kw_only=True)
class Probe(ProbeSettings, EditCommand):  # in this order its own size and particles count
    """Find out what an instruction changes that it did not name, over a folder of pictures.

    They are edited together; then it is tested whether some place of all pictures drifts in brightness or
    colour beyond what the colours that were there explain, and with `--against` whether whole pictures do.
    """

    settings_type = ProbeSettings
    size_option = "--size"
    repeated = ("attribute",)

    input: Annotated[Path, tyro.conf.arg(name="data")]
    """Folder of pictures, 8 or more, of any sizes, as different as can be."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Where the page is to be: NAME.html. The figures go beside it, to NAME.json."""
    prompt: str = ""
    """The instruction to probe: "make it winter"; a description for a text-to-image prior."""
    masks: Optional[Path] = None  # noqa: UP045
    """Folder of masks with the names of the pictures, white where a region is that is looked at as well: the
    skies, the faces."""

    clip: str = ""
    """CLIP that says whether what the pictures show drifts, from day to night or young to old: a hub id such
    as openai/clip-vit-large-patch14 (1.7 GB are fetched), or a folder in transformers' format. Empty for
    none."""
    attribute: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An attribute that CLIP is asked about besides the usual ones, as two texts: "a cat | a dog". May be
    given several times."""

    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def run(self) -> None:
        """Probe, and write what was found.

        Raises:
            InputError: for pictures, options or an output that cannot be used.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console
        from rich.text import Text

        from csd_nerf.files import check_output
        from csd_nerf.probing.clip_attributes import (
            USUAL_PAIRS,
            Seen,
            as_pairs,
            attribute_drifts,
            in_lines,
            load_attribute_clip,
        )
        from csd_nerf.probing.probe_page import write_json
        from csd_nerf.probing.probing import probe, spread
        from csd_nerf.translation.crops import folder_of_pictures

        self.check(self.prompts())
        self.check_paths()
        check_output(self.output, (".html",), force=self.force)
        check_output(self.beside(".json"), (".json",), force=self.force)
        pairs = (*USUAL_PAIRS, *as_pairs(self.attribute))
        check(
            bool(self.clip) or not self.attribute,
            "--attribute",
            expected="--clip beside it, with what is to be asked about it",
            got="no --clip",
        )
        files = spread(folder_of_pictures(self.input), self.particles)
        self._check_enough(files)
        clip = load_attribute_clip(self.clip, self.present_device()) if self.clip else None
        prior = self.load_prior()
        pictures = self._squares(files, self._side(prior))
        masks = None if self.masks is None else {"what the masks show": self._masks(files, pictures)}
        console = Console()
        with self.watched(console) as observer:
            probed = probe(
                pictures, self.prompt, self.settings(), masks=masks, loaded=prior, observer=observer
            )
        seen = None
        if clip is not None:
            without = probed.after - probed.change
            seen = Seen(clip.description, attribute_drifts(clip, without, probed.after, pairs))
        write_json(self.beside(".json"), probed, self.prompt, self.against, seen)
        self._write_page(probed, seen, observer)
        found = [f"found: {drift.in_words()}" for drift in probed.findings] or ["nothing found"]
        for line in (*found, *in_lines(seen)):
            console.print(Text(line), soft_wrap=True)
        print_paths(console, [self.output, self.beside(".json")])

    def called(self) -> list[str]:
        return ["probe", "--data", str(self.input)]

    def _check_enough(self, files: list[Path]) -> None:
        from csd_nerf.probing.drift import LEAST_PICTURES

        check(
            len(files) >= LEAST_PICTURES,
            f"{self.input} holds too few pictures",
            expected=f"at least {LEAST_PICTURES}, to tell a habit from chance",
            got=len(files),
            hint="add pictures",
        )

    def _side(self, prior: Any) -> int:
        size, factor = self.size or prior.native_size, prior.vae_factor
        nearest = max(round(size / factor), 1) * factor
        check(size % factor == 0, "--size", expected=f"a multiple of {factor}, such as {nearest}", got=size)
        return size

    def _squares(self, files: list[Path], side: int) -> Any:
        """The middle squares of pictures, (n, 3, side, side)."""
        import torch

        from csd_nerf.media import read_picture

        return torch.stack([middle_square(read_picture(file).pixels, side) for file in files])

    def _masks(self, files: list[Path], pictures: Any) -> Any:
        """Masks of the same squares, (n, side, side)."""
        import torch

        from csd_nerf.media import read_picture

        assert self.masks is not None
        found = []
        for file in files:
            same = sorted(self.masks.glob(f"{file.stem}.*"))
            check(
                bool(same),
                f"{self.masks} has no mask for {file.name}",
                expected=f"a picture {file.stem}.png, white where the region is",
                got="none of that name",
                hint="add it, or leave out --masks",
            )
            white = read_picture(same[0]).whiteness[None]
            found.append(middle_square(white, pictures.shape[-1])[0])
        return torch.stack(found)

    def _write_page(self, probed: "Probed", seen: "Seen | None", observer: "FileObserver") -> None:
        from csd_nerf.probing.probe_page import write_probe_page

        settings, config = self.settings(), self.settings().objective_config()
        write_probe_page(
            self.output,
            probed,
            seen,
            prompt=self.prompt,
            against=self.against,
            intro=f"{len(probed.before)} pictures of {self.input.name}, edited together by {self.method} "
            f"with {self.prior}.",
            command=self.command_line(),
            settings={
                "steps": settings.descent().steps,
                "text guidance": config.text_guidance,
                "transport": config.transport,
                "seed": self.seed,
            },
            seconds=observer.seconds,
        )


def middle_square(picture: Any, side: int) -> Any:
    """The largest square in the middle of a picture (c, H, W), at another size."""
    from torch.nn import functional

    height, width = picture.shape[1:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = picture[None, :, top : top + short, left : left + short]
    return functional.interpolate(square, size=(side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)
