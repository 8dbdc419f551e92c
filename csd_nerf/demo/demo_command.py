"""The options of `csd-nerf demo`, and its course."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from csd_nerf.demo.demo_settings import FULL, DemoSettings, Progress, Sizes, command_line, open_folder
from csd_nerf.errors import EXIT_STATUS_BAD_INPUT, InputError, check, check_at_least

if TYPE_CHECKING:
    from rich.console import Console

LEAST_FRAMES = 8
"""Of a captured scene: the four views of a round, and some to evaluate on."""

DEFAULT_PROMPT = "make it autumn"
"""Of the bundled prior's instructions, the one that shows best on the still life."""


@dataclass
class Demo:
    """Make a small scene, train it, edit it by an instruction, and show the result on a page.

    Takes minutes on two CPU cores and needs no GPU, network or account. The same command goes on
    where an earlier one was interrupted.
    """

    output: Path = Path("csd-nerf-demo")
    """Folder for everything: the page (index.html), pictures, video, commands, runs and logs."""
    data: Path | None = None
    """A captured scene in nerfstudio's format, as `ns-process-data` makes it, or a folder of COLMAP,
    LLFF with a COLMAP model, Blender, instant-ngp or Record3D. Without it a still life is rendered."""
    prompt: str = DEFAULT_PROMPT
    """What to change. The bundled prior knows a few instructions only: its model card lists them."""
    prior: str = "tiny-instruct"
    """What proposes the change: tiny-instruct, or the folder of an InstructPix2Pix in diffusers format."""
    train_steps: int = 1000
    """Steps of training the scene as it is."""
    edit_steps: int = 240
    """Steps of the edit; 32 to a round of edited views."""
    seed: int = 0
    """Decides cameras, training and edit."""

    def run(self, sizes: Sizes = FULL) -> None:
        """Carry out what is not done yet, and write the page.

        Args:
            sizes: of scene and pictures.

        Raises:
            InputError: for options that cannot be used, or a folder that is not this demo's.
            SystemExit: when a stage fails.
            KeyboardInterrupt: after saying how to go on.
        """
        from rich.console import Console

        console = Console()
        settings = self.check(sizes)
        open_folder(self.output, settings, defaults())
        again = command_line(self.output, settings.as_json(), defaults())
        try:
            self._carry_out(settings, again, console)
        except KeyboardInterrupt:
            console.print("\nStopped; what is done is kept. To go on:", highlight=False)
            console.print(Text(f"  {again}"), soft_wrap=True)
            raise

    def check(self, sizes: Sizes) -> DemoSettings:
        """The settings that these options make.

        Raises:
            InputError: for an option that cannot be used.
        """
        check(
            bool(self.prompt.strip()),
            "the prompt is empty",
            expected="what to change, in words",
            got=repr(self.prompt),
            hint=f'leave out --prompt, or say --prompt "{DEFAULT_PROMPT}"',
        )
        for name, least in (("train_steps", 1), ("edit_steps", 1), ("seed", 0)):
            check_at_least(name, getattr(self, name), least, hint=f"leave it out for {defaults()[name]}")
        return DemoSettings(
            data=None if self.data is None else str(_checked_data(self.data)),
            prompt=self.prompt,
            prior=_checked_prior(self.prior),
            train_steps=self.train_steps,
            edit_steps=self.edit_steps,
            seed=self.seed,
            sizes=sizes,
        )

    def _carry_out(self, settings: DemoSettings, again: str, console: Console) -> None:
        from csd_nerf.demo.child import CommandFailed
        from csd_nerf.demo.demo_page import write_page
        from csd_nerf.demo.running_stages import report_failure, run_stage
        from csd_nerf.demo.stages import stages_of
        from csd_nerf.display import Display, minutes

        stages = stages_of(self.output, settings)
        progress = Progress(self.output)
        with Display(stages, console) as display:
            for stage in stages:
                if stage.finished():
                    display.skip(stage)
                    continue
                try:
                    run_stage(stage, progress, display)
                except CommandFailed as failure:
                    display.close()
                    report_failure(stage, failure, again, console)
                    status = EXIT_STATUS_BAD_INPUT if failure.status == EXIT_STATUS_BAD_INPUT else 1
                    raise SystemExit(status) from None
                display.finish(stage, progress[stage.key].seconds)
        page = write_page(self.output, settings, stages, progress, again)
        total = sum(progress[stage.key].seconds for stage in stages)
        console.print(f"Done in {minutes(total)}. Open in a browser:", highlight=False)
        console.print(Text(f"  {page.resolve()}"), soft_wrap=True)


def defaults() -> dict[str, Any]:
    """The default of every option."""
    return {field.name: field.default for field in fields(Demo) if field.default is not MISSING}


def _checked_data(data: Path) -> Path:
    import nerfstudio.engine.trainer  # noqa: F401 - its data managers cannot be imported before it

    from csd_nerf.nerf.captures import check_capture

    data = data.expanduser().resolve()
    check_capture(data, at_least=LEAST_FRAMES)
    return data


def _checked_prior(prior: str) -> str:
    from csd_nerf.bundled import BUNDLED_PRIORS
    from csd_nerf.distillation.residuals import check_fit
    from csd_nerf.priors.folder import download_command, is_image_conditioned
    from csd_nerf.priors.loading import check_prior

    folder = check_prior(prior)
    if folder is None:
        raise InputError(
            f"the demo does not fetch a prior, and {prior} is not on this machine",
            expected="tiny-instruct, or a local folder of an InstructPix2Pix in diffusers format",
            got=repr(prior),
            hint=f"fetch it first (`{download_command(prior, 'FOLDER')}`) and pass the folder; for "
            "full-size models there is `ns-train csd-edit`, on a GPU",
        )
    check_fit("csd-edit", image_conditioned=is_image_conditioned(folder))
    return prior if prior in BUNDLED_PRIORS else str(folder.resolve())
