"""The trainer of an edit: from a trained scene, or on from where an edit ended."""

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text

from csd_nerf import ranks
from csd_nerf.distillation.residuals import Guidance
from csd_nerf.errors import InputError, check
from csd_nerf.nerf.candidate import read_candidate, save_candidate
from csd_nerf.nerf.closing_words import evaluate_command
from csd_nerf.nerf.cost import NOTHING, CostMeter
from csd_nerf.nerf.edit_pipeline import EditPipeline, EditPipelineConfig
from csd_nerf.nerf.known_prompts import words_unknown_to
from csd_nerf.nerf.model import holds_source
from csd_nerf.nerf.prompted_trainer import PromptedTrainer, PromptedTrainerConfig
from csd_nerf.nerf.region_box import RegionBox
from csd_nerf.nerf.runs import Run, adopt, find_run, read_checkpoint

# The config.yml of scenes that were trained before these had a file of their own names them here.
from csd_nerf.nerf.scene_trainer import SceneTrainer, SceneTrainerConfig, check_device, free_timestamp  # noqa: F401
from csd_nerf.nerf.source_scene import source_checkpoint
from csd_nerf.nerf.trying import Tried, ViewsToTry
from csd_nerf.priors.control import check_control
from csd_nerf.priors.folder import is_for_clips
from csd_nerf.priors.loading import check_device as check_prior_device
from csd_nerf.priors.motion import check_motion
from csd_nerf.settings_files import options_given
from csd_nerf.translation.model_file import load_translator

VIEWS_TO_TRY = 3
"""At most so many views are edited together in a try, as by `csd-nerf try`."""


@dataclass
class EditTrainerConfig(PromptedTrainerConfig):
    """A trained scene (`--load-dir`) and a prompt; steps count from the start of the edit."""

    _target: Type = field(default_factory=lambda: EditTrainer)  # noqa: UP006
    pipeline: EditPipelineConfig = field(default_factory=EditPipelineConfig)
    """The edit."""

    def set_timestamp(self) -> None:
        """As the parent's. Where several processes are asked for they are begun here, once they are known to
        have something to do: this one waits for them, and ends as they do."""
        if ranks.launched():
            check_device(self.machine.device_type)
            ranks.join(self.machine.device_type)
            # Of them nerfstudio is told nothing: what it would share out is not what an edit does.
            self.machine.num_devices = self.machine.num_machines = 1
        super().set_timestamp()
        if not ranks.launched() and self._processes > 1:
            machine = self.machine
            raise SystemExit(
                ranks.launch(
                    machine.num_devices, machine.num_machines, machine.machine_rank, machine.dist_url
                )
            )
        self.timestamp = ranks.as_first(self.timestamp)
        if not ranks.leads():
            self.vis = "tensorboard"  # of which nerfstudio writes that of the first rank alone

    def save_config(self) -> None:
        """As the parent's; one rank does."""
        if ranks.leads():
            super().save_config()

    def setup(self, **options: Any) -> Any:
        """The trainer, on the GPU of this rank."""
        return super().setup(**{**options, "local_rank": ranks.local()})

    def check(self) -> None:
        """Find the source run, complete this configuration from it, and refuse what cannot work.

        `--load-dir` may be a scene, which is then edited from the start, or an edit. With the edit's prompt,
        or with none, that is continued with its own settings except for those given anew; with another
        prompt, the edited scene is edited, once its edit has ended.

        Raises:
            InputError: for a missing or empty prompt, run, dataset or prior, a recipe that does not fit, or a
                device that is absent.
        """
        self._take_prompt_and_recipe()
        run = find_run(self._run_path(), self.load_step)
        self._take_candidate()
        if isinstance(run.config, EditTrainerConfig):
            if self._asks_for_more(run, run.config):
                check_can_be_edited(run, run.config)
                self._begin_from_scene(run, self._usual())
                self.pipeline.source_was_edited = True
            else:
                self._continue_edit(run, run.config)
        else:
            self._begin_from_scene(run, self._usual())
        check_device(self.machine.device_type)
        self.load_dir, self.load_checkpoint = None, run.checkpoint
        self.data = self.data or self.pipeline.datamanager.data
        self.pipeline.datamanager.data = self.data
        self._check_prompt("what to change, in words", "turn the bear into a polar bear")
        super().check()
        self._check_options()
        self._check_prior()

    def plan(self, steps: int) -> None:
        super().plan(steps)
        for optimizer in self.optimizers.values():
            if optimizer["scheduler"] is not None:
                optimizer["scheduler"].max_steps = steps  # the decay is over the whole edit

    def _check_options(self) -> None:
        super()._check_options()
        self.plan(self.max_num_iterations)
        datamanager = self.pipeline.datamanager
        if datamanager.photo_size is not None:
            # The prior is shown the photos: enlarged ones would be a blurred source.
            datamanager.photo_size = max(datamanager.photo_size, self.pipeline.render_size)

    def _check_processes(self) -> None:
        machine, pipeline, processes = self.machine, self.pipeline, self._processes
        devices = machine.num_devices
        there = torch.cuda.device_count() if machine.device_type == "cuda" else devices
        check(
            1 <= devices <= there,
            "--machine.num-devices cannot be used",
            expected=f"1 to {there}, the GPUs of this machine",
            got=devices,
        )
        check(
            machine.num_machines == 1 or machine.dist_url.startswith("tcp://"),
            "the machines do not know where to meet",
            expected="--machine.dist-url tcp://HOST:PORT, of machine 0",
            got=machine.dist_url,
        )
        if pipeline.prior_device:
            first = check_prior_device(pipeline.prior_device)
            check_prior_device(ranks.own_device(str(first), ranks.local() + devices - 1))
        views = pipeline.particles or processes  # 0 is all of a scene
        check(
            pipeline.route == "loop" or views >= processes,
            "there are no views for every process",
            expected=f"at least {processes} with --pipeline.route gradient, a view for each",
            got=views,
            hint="raise --pipeline.particles, or begin fewer processes",
        )
        manager = pipeline.datamanager
        side = max(1, manager.patch_size)  # what is below 1 the pipeline refuses
        patches = max(1, manager.train_num_rays_per_batch // side**2)
        check(
            patches >= processes,
            "a fit has no rays for every process",
            expected=f"at least {processes} patches of {manager.patch_size} x {manager.patch_size} pixels",
            got=f"{patches}",
            hint="raise --pipeline.datamanager.train-num-rays-per-batch",
        )

    def _check_prior(self) -> Path | None:
        pipeline = self.pipeline
        if pipeline.translator is not None:
            load_translator(pipeline.translator).target(pipeline.prompt)
            return None
        folder = super()._check_prior()
        check_control(pipeline.control, folder)
        check_motion(pipeline.motion, folder)
        if pipeline.motion or (folder is not None and is_for_clips(folder)):
            pipeline.check_clips()
        return folder

    def _take_candidate(self) -> None:
        """Let a candidate that was chosen say what the command line does not."""
        pipeline = self.pipeline
        if pipeline.candidate is None:
            return
        candidate, said = read_candidate(pipeline.candidate), options_given(sys.argv[1:])
        check(
            pipeline.prompt in ("", candidate.prompt),
            f"{pipeline.candidate} was tried with another prompt",
            expected=repr(candidate.prompt),
            got=repr(pipeline.prompt),
            hint="leave out --prompt",
        )
        pipeline.prompt = candidate.prompt
        if candidate.prior and "pipeline.prior" not in said:
            pipeline.prior = candidate.prior
        guidance = "pipeline.objective" if pipeline.distils else "pipeline.sampling"
        for name in ("text_guidance", "image_guidance"):
            if f"{guidance}.{name}" not in said:
                setattr(pipeline.guidance, name, getattr(candidate, name))
        if "machine.seed" not in said:
            self.machine.seed = candidate.seed

    def _asks_for_more(self, run: Run, saved: "EditTrainerConfig") -> bool:
        """Whether the edited scene is to be edited again: another prompt, and an edit that has ended."""
        prompt = self.pipeline.prompt
        return bool(prompt) and prompt != saved.pipeline.prompt and has_ended(run)

    def _begin_from_scene(self, run: Run, default: "EditTrainerConfig") -> None:
        """Take field sizes and data from the scene, where the user gave none."""
        self.pipeline.source_checkpoint = run.checkpoint
        if run.config is None:
            return
        scene: Any = run.config.pipeline
        usual, own = default.pipeline, self.pipeline.datamanager
        said = options_given(sys.argv[1:])
        self.pipeline.model = adopt(self.pipeline.model, usual.model, scene.model, said, "pipeline.model.")
        named = getattr(own.dataparser, "data", None)  # of `... colmap --data NEW`
        if own.data is None and named != getattr(type(own.dataparser)(), "data", None):
            own.data = named
        own.data = own.data or getattr(scene.datamanager, "data", None)
        if own.dataparser == usual.datamanager.dataparser:
            own.dataparser = getattr(scene.datamanager, "dataparser", own.dataparser)

    def _continue_edit(self, run: Run, saved: "EditTrainerConfig") -> None:
        """Go on from the edit so far and the scene that it started from."""
        self._continue(run, saved)
        folder = run.checkpoint.parent.parent
        for option in ("freeze_geometry", "region.source"):
            begun, now = (attrgetter(option)(config) for config in (saved.pipeline, self.pipeline))
            if begun != now:
                flag = f"--pipeline.{option.replace('_', '-')}"
                raise InputError(
                    f"{folder} is an edit with another {flag}",
                    expected=f"{flag} {begun}, as it was begun with",
                    got=f"{flag} {now}",
                    hint=f"leave out {flag}, or edit the source scene with it",
                )
        source_checkpoint(saved.pipeline)

    def _other_prompt_hint(self, saved: Any) -> str:
        source = shlex.quote(str(saved.pipeline.source_checkpoint))
        return (
            "leave out --prompt and let it end, after which it can be edited with another; or edit the "
            f"source scene: --load-dir {source}"
        )

    def _run_path(self) -> Path:
        path = self.load_dir or self.load_checkpoint
        if path is None:
            raise InputError(
                "no source scene was given",
                expected="--load-dir with the run folder of a trained scene",
                got="neither --load-dir nor --load-checkpoint",
                hint="train the scene first: `ns-train csd-nerfacto --data SCENE`",
            )
        return path


def has_ended(run: Run) -> bool:
    """Whether an edit has come to its end, by itself or by being told to, and was not killed."""
    return (run.checkpoint.parent.parent / "pictures" / "after.png").exists()


def check_can_be_edited(run: Run, saved: EditTrainerConfig) -> None:
    """Refuse to edit an edited scene that two fields have a part in: an edit begins with one.

    Raises:
        InputError: naming what lets the source's field have a part.
    """
    pipeline = saved.pipeline
    for flag, shared in (
        ("--pipeline.region.source", pipeline.region.source != "none"),
        ("--pipeline.freeze-geometry", pipeline.freeze_geometry),
        (
            "--pipeline.strength",
            pipeline.strength < 1 or holds_source(read_checkpoint(run.checkpoint)["pipeline"]),
        ),
    ):
        check(
            not shared,
            f"{run.checkpoint.parent.parent} cannot be edited further: its source has a part in it",
            expected=f"an edit without {flag}",
            got=f"an edit with {flag}",
            hint="edit the whole scene first, and give the region or the strength of the last edit alone",
        )


class EditTrainer(PromptedTrainer):
    """Begins at step 0 of the edit, or where its checkpoint ended."""

    config: EditTrainerConfig
    pipeline: EditPipeline
    tries = Path()
    """Folder of the candidates that were tried last."""
    _taken: Path | None = None
    _recorded: EditTrainerConfig
    _whole: EditTrainerConfig

    def commands(self) -> dict[str, str]:
        return {**super().commands(), "Measure": evaluate_command(self.base_dir)}

    def setup_optimizers(self) -> Optimizers:
        """The parent's, for gradients of which every rank has a share."""
        made = super().setup_optimizers()
        return SharedOptimizers(made.config, made.parameters) if ranks.count() > 1 else made

    def _load_checkpoint(self) -> None:
        """Begin the edit; continue it when the checkpoint is one of an edit."""
        source = self.config.pipeline.source_checkpoint
        checkpoint = self.config.load_checkpoint
        assert source is not None and checkpoint is not None, "EditTrainerConfig.check sets both"
        self.pipeline.begin_edit(
            read_checkpoint(source)["pipeline"],
            seed=self.config.machine.seed,
            max_steps=self.config.max_num_iterations,
            origin=str(source),
        )
        if checkpoint == source:
            prompt = self.config.pipeline.prompt
            CONSOLE.print(Text(f"Editing {source}: {prompt!r}"), soft_wrap=True)
            self.pipeline.warn(words_unknown_to(self.config.pipeline.asked, prompt))
            self.pipeline.find_relevant(prompt)
            if self.config.pipeline.candidate is not None:
                self.pipeline.begin_with(self.config.pipeline.candidate)
            return
        # The source's optimisers and schedulers are not those of the edit; the edit's own are.
        super()._load_checkpoint()

    # ---------------------------------------------------------------- asked for from a viewer

    def undo(self) -> None:
        """Show the source; the edit stays where it is saved, and `redo` shows it again.

        Raises:
            InputError: steps are being made.
        """
        self._check_waits()
        if not self.pipeline.is_undone:
            self.pipeline.undo()

    def redo(self) -> None:
        """Show the edit that was undone.

        Raises:
            InputError: steps are being made.
        """
        self._check_waits()
        if self.pipeline.is_undone:
            self.pipeline.redo()
            self.save_settings()

    def edit_on_top(self) -> None:
        """Let the edited scene be the source of another edit, in a folder of its own; this one is kept.
        It is what `--load-dir` of this one does with another prompt.

        Raises:
            InputError: steps are being made; there is no edit, or its source has a part in it.
        """
        self._check_waits()
        check(
            self.steps_done > 0 and not self.pipeline.is_undone,
            "there is no edit to edit further",
            expected="an edited scene",
            got="its source",
            hint="press Redo first" if self.pipeline.is_undone else "press Start first",
        )
        self._write_settings()
        run = find_run(self.base_dir)
        assert isinstance(run.config, EditTrainerConfig)
        check_can_be_edited(run, run.config)
        self.pipeline.take_as_source(run.checkpoint)
        self._taken = None
        self._begin_anew()

    def go_on(self) -> None:
        """Make the steps that are left; where the edit was undone, those of another, in another folder."""
        self._check_waits()
        if self.pipeline.is_undone:
            self._begin_anew()
        if self._taken is not None:
            self.pipeline.begin_with(self._taken)
            self._taken = None
        super().go_on()

    def change_prompt(self, prompt: str) -> None:
        """As the parent's. A candidate that was taken is given up; where the diffusion model says where to
        edit, it is asked again before the first step.

        Raises:
            InputError: it is blank, or changes nothing anywhere.
        """
        self.pipeline.check_words(prompt)
        if not self.steps_done:
            self.pipeline.find_relevant(prompt.strip())
            self.pipeline.write_region(self.base_dir / "pictures")
        super().change_prompt(prompt)
        if self._taken is not None:
            self._taken = self._recorded.pipeline.candidate = None

    def try_edits(self, count: int) -> Iterator[Tried]:
        """Candidates for the prompt, one for each seed from 0 on; `take` makes one the edit.

        Raises:
            InputError: steps are being made; the scene is edited already; see `ViewsToTry`.
        """
        self._check_waits()
        pipeline = self.pipeline
        check(
            not self.steps_done or pipeline.is_undone,
            "the scene is edited already",
            expected="the source, of which an edit can be tried",
            got=f"an edit of {self.steps_done} steps",
            hint="press Undo first",
        )
        self.tries = self.base_dir / "tries" / time.strftime("%Y-%m-%d_%H%M%S")
        views = ViewsToTry(pipeline, min(VIEWS_TO_TRY, len(pipeline.datamanager.train_dataset)))
        guidance = Guidance(pipeline.text_guidance.value, pipeline.image_guidance.value)
        for seed in range(count):
            tried = views.ask(pipeline.prompt.value, guidance, seed)
            save_candidate(self.tries / str(seed + 1), tried.candidate, tried.pictures)
            yield tried

    def save_settings(self) -> None:
        """As the parent's; what is set while an edit is undone is of the next one, unless it is redone."""
        if not self.pipeline.is_undone:
            super().save_settings()

    def take(self, number: int) -> None:
        """Let one of the candidates, 1-based, become the edit.

        Raises:
            InputError: steps are being made, or there is no such candidate.
        """
        self._check_waits()
        folder = self.tries / str(number)
        candidate = read_candidate(folder)
        if candidate.prompt != self.pipeline.prompt.value:
            self.change_prompt(candidate.prompt)
        self.pipeline.follow(candidate)
        self._taken = folder
        for config in (self._whole, self._recorded):
            config.machine.seed, config.pipeline.candidate = candidate.seed, folder
        self.save_settings()

    def more_steps(self, steps: int) -> None:
        if self.pipeline.is_undone:
            raise InputError(
                "the edit that could have more steps is undone",
                expected="an edit",
                got="its source",
                hint="press Redo, and then More steps; or Start, for another edit",
            )
        super().more_steps(steps)

    def show_at(self, strength: float) -> None:
        """Show so much of the edit; nothing is trained anew.

        Raises:
            InputError: steps are being made, or the source is shown; or see `EditPipeline.show_at`.
        """
        self._check_waits()
        check(
            not self.pipeline.is_undone,
            "there is nothing to mix with the source",
            expected="an edit",
            got="one that is undone",
            hint="press Redo first",
        )
        self.pipeline.show_at(strength)
        self.save_settings()

    def keep_to_box(self, box: RegionBox) -> None:
        """Let an edit that has not begun be in a box.

        Raises:
            InputError: it has begun; or see `EditPipeline.keep_to_box`.
        """
        if self.steps_done and not self.pipeline.is_undone:
            raise InputError(
                "this edit has begun everywhere",
                expected="the source, of which an edit in a box can begin",
                got=f"an edit of {self.steps_done} steps",
                hint="press Stop and keep, then Undo, and choose the box before Start",
            )
        self.pipeline.keep_to_box(box)
        if not self.pipeline.is_undone:  # else `go_on` does, for a folder of its own
            self._renew()
        self.save_settings()

    def _begin_anew(self) -> None:
        """Step 0 of an edit that has a folder of its own; that of the edit before it stays as it is."""
        config = self.config
        config.timestamp = free_timestamp(config)
        config.load_checkpoint = config.pipeline.source_checkpoint
        for each in (config, self._recorded):
            each.pipeline.candidate = self._taken
        self.base_dir, self.checkpoint_dir = config.get_base_dir(), config.get_checkpoint_dir()
        self.base_dir.mkdir(parents=True)
        self._start_step = self.steps_done = 0
        self._meter = CostMeter(NOTHING, self.device)
        self.pipeline.begin_anew()
        self._renew()
        self.save_settings()

    def _renew(self) -> None:
        """Optimisers and callbacks of an edit that begins."""
        self.optimizers = self.setup_optimizers()
        self.callbacks = self.pipeline.get_training_callbacks(
            TrainingCallbackAttributes(
                optimizers=self.optimizers,
                grad_scaler=self.grad_scaler,
                pipeline=self.pipeline,
                trainer=self,
            )
        )
        self._lock_callbacks()


class SharedOptimizers(Optimizers):
    """nerfstudio's, which first sum the gradients of all ranks, before any of them is looked at."""

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        """See the parent."""
        for group in param_groups:
            ranks.sum_gradients(self.parameters[group])
        super().optimizer_scaler_step_some(grad_scaler, param_groups)
