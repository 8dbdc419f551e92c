"""The options of `csd-nerf try`, and its course."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.text import Text

from csd_nerf.devices import Device, present_device
from csd_nerf.display import minutes
from csd_nerf.errors import InputError, check, check_at_least, memory_explained
from csd_nerf.files import check_free

if TYPE_CHECKING:
    from csd_nerf.nerf.edit_pipeline import EditPipeline


@dataclass
class Try:
    """Try edits on a few views of a scene, in seconds, and choose one.

    The views are edited together in latent space, as a whole edit would, but without the scene between them.
    Every prompt is tried at every guidance with every seed. Leaves a page that shows all candidates; one of
    them becomes the edit by `ns-train csd-edit --pipeline.candidate FOLDER/NUMBER`.
    """

    scene: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of a trained scene, or of an edit that has ended."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to change, as an instruction. May be given several times."""
    guidance: tuple[float, ...] = ()
    """Text guidances to try. Without it: the method's own."""
    seeds: int = 4
    """How many seeds to try."""
    views: int = 3
    """How many views are edited together, spread over the capture."""
    method: str = ""
    """Method whose settings are tried. Without it: csd-edit where there is a GPU, else csd-edit-tiny."""
    prior: str = ""
    """Diffusion model: bundled name, folder in diffusers format, or hub id. Without it: the method's own."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to be made. Without it: one by the time of day, in `tries` in the run folder."""

    def run(self) -> None:
        """Try, show and say how to choose.

        Raises:
            InputError: for options that cannot be used, or a folder without a scene.
        """
        self.check()
        from rich.console import Console

        console = Console()
        with warnings.catch_warnings(), console.status("loading") as status:
            warnings.simplefilter("ignore")  # nerfstudio's and torch's about their own code, line after line
            from csd_nerf.distillation.residuals import Guidance
            from csd_nerf.nerf.candidate import save_candidate
            from csd_nerf.nerf.known_prompts import words_unknown_to
            from csd_nerf.nerf.trying import ViewsToTry
            from csd_nerf.trying.try_page import write_try_page

            with memory_explained(expected="room for a scene and a prior", hint="turn down --views"):
                pipeline = self._begun()
                if unknown := words_unknown_to(pipeline.config.prior, *self.prompt):
                    console.print(Text(unknown, "yellow"), soft_wrap=True)
                began = time.monotonic()
                views = ViewsToTry(pipeline, self.views)
                usual = pipeline.config.guidance
                asked = list(
                    itertools.product(self.prompt, self.guidance or (usual.text_guidance,), range(self.seeds))
                )
                tried = []
                for number, (prompt, guidance, seed) in enumerate(asked, start=1):
                    status.update(f"trying {number} of {len(asked)}")
                    tried.append(views.ask(prompt, Guidance(guidance, usual.image_guidance), seed))
        took = time.monotonic() - began
        folder = self.output or self._run_folder() / "tries" / time.strftime("%Y-%m-%d_%H%M%S")
        folder.mkdir(parents=True)
        for number, each in enumerate(tried, start=1):
            save_candidate(folder / str(number), each.candidate, each.pictures)
            words = f"{number}. {each.candidate.prompt}, guidance {each.candidate.text_guidance:g}, "
            words += f"seed {each.candidate.seed}: {each.candidate.in_words()}"
            console.print(Text(words), soft_wrap=True)
        write_try_page(folder, views.images, tried, method=self._method(), scene=self.scene)
        console.print(Text(f"Tried in {minutes(took)}. Look: {folder / 'index.html'}"), soft_wrap=True)

    def check(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            InputError: naming the option.
        """
        check(
            bool(self.prompt) and all(prompt.strip() for prompt in self.prompt),
            "no prompt was given",
            expected="what to change, in words",
            got=repr(self.prompt[0]) if self.prompt else "nothing",
            hint='add `--prompt "make it night"`',
        )
        check_at_least("seeds", self.seeds, 1)
        check_at_least("views", self.views, 1)
        for guidance in self.guidance:
            check(
                math.isfinite(guidance) and guidance >= 0,
                "--guidance",
                expected="numbers from 0 on",
                got=guidance,
            )
        if self.output is not None:
            check_free(self.output, force=False)

    def _method(self) -> str:
        return self.method or ("csd-edit" if present_device(self.device) == "cuda" else "csd-edit-tiny")

    def _run_folder(self) -> Path:
        from csd_nerf.nerf.runs import find_run

        return find_run(self.scene).checkpoint.parent.parent

    def _begun(self) -> EditPipeline:
        """The pipeline of an edit of this scene, before its first step."""
        import copy

        import torch

        import csd_nerf.nerf.methods  # noqa: F401 - fills METHODS
        from csd_nerf.nerf.registry import METHODS
        from csd_nerf.nerf.runs import read_checkpoint
        from csd_nerf.nerf.trainer import EditTrainerConfig

        config: Any = copy.deepcopy(METHODS.get(self._method()))
        if not isinstance(config, EditTrainerConfig):
            edits = [name for name, each in METHODS.items() if isinstance(each, EditTrainerConfig)]
            raise InputError(
                f"{self._method()} is no method that edits",
                expected=", ".join(edits),
                got=self._method(),
                hint="leave out --method, or take one of these",
            )
        config.load_dir, config.prompt = self.scene, self.prompt[0]
        config.pipeline.prior = self.prior or config.pipeline.prior
        config.machine.device_type = present_device(self.device)
        config.pipeline.picture_views, config.pipeline.picture_size = 1, 16  # not looked at
        config.check()
        source = config.pipeline.source_checkpoint
        assert source is not None, "EditTrainerConfig.check sets it"
        pipeline: Any = config.pipeline.setup(
            device=torch.device(config.machine.device_type), test_mode="val"
        )
        pipeline.begin_edit(
            read_checkpoint(source)["pipeline"],
            seed=config.machine.seed,
            max_steps=config.max_num_iterations,
            origin=str(source),
        )
        return pipeline
