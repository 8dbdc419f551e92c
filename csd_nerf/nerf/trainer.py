"""Trainers that check their input first; the edit's own start, resume and failure handling."""

import copy
import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Optional, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from csd_nerf.distillation.objective import NonFiniteResidual
from csd_nerf.errors import InputError, exit_on_input_error, is_out_of_memory
from csd_nerf.nerf.base_pipeline import BaseEditPipeline, BaseEditPipelineConfig
from csd_nerf.nerf.cost import NOTHING, CostMeter, read_cost, write_cost
from csd_nerf.nerf.datamanager import check_dataset
from csd_nerf.nerf.prompted import PromptedPipeline, PromptedPipelineConfig, require
from csd_nerf.nerf.runs import Run, adopt, find_run, read_checkpoint
from csd_nerf.nerf.views import check_short_side
from csd_nerf.priors.control import check_control
from csd_nerf.priors.folder import is_image_conditioned, vae_factor
from csd_nerf.priors.loading import check_prior
from csd_nerf.recipes import apply_recipe, options_given

NON_FINITE_STEPS_IN_A_ROW = 5
"""So many skipped steps in a row end the edit: it will not recover by itself."""


@dataclass
class SceneTrainerConfig(TrainerConfig):
    """nerfstudio's trainer, with bad input refused before anything is built."""

    _target: Type = field(default_factory=lambda: SceneTrainer)  # noqa: UP006

    def set_timestamp(self) -> None:
        """Check the input; nerfstudio calls this first once the command line is complete."""
        with exit_on_input_error():
            self.check()
        super().set_timestamp()

    def check(self) -> None:
        """Refuse what cannot work; find the run that `--load-dir` names, to go on with.

        Raises:
            InputError: see `check_device`, `check_dataset` and `find_run`.
        """
        check_device(self.machine.device_type)
        if self.load_dir is not None:
            self.load_checkpoint = find_run(self.load_dir, self.load_step).checkpoint
            self.load_dir = None
        datamanager: Any = self.pipeline.datamanager
        check_dataset(self.data or datamanager.data or datamanager.dataparser.data, datamanager.dataparser)


_CONTINUED = (
    "max_num_iterations", "max_minutes", "mixed_precision", "use_grad_scaler", "gradient_accumulation_steps",
    "steps_per_save", "optimizers",
)  # fmt: skip
"""Of nerfstudio's own settings, those that a continued run takes from its config.yml."""


@dataclass
class PromptedTrainerConfig(SceneTrainerConfig):
    """A prompt and what is to follow it; steps count from the start."""

    _target: Type = field(default_factory=lambda: PromptedTrainer)  # noqa: UP006
    pipeline: PromptedPipelineConfig = field(default_factory=PromptedPipelineConfig)
    """What is asked, and of what."""
    recipe: Optional[str] = None  # noqa: UP045
    """Settings for a machine, a scene or a task: `tiny` (two CPU cores, with the bundled priors), or a YAML
    file. Options given beside it win."""
    max_minutes: Optional[float] = None  # noqa: UP045
    """Stop at the first step after so many minutes, even if steps are left. The minutes of a run that is
    continued count, as its cost.json has them; start-up, final pictures and turntable do not."""

    def _check_prompt(self, expected: str, example: str) -> None:
        """Refuse to begin without a prompt; the message says what is expected, and gives an example."""
        if not self.pipeline.prompt.strip():
            raise InputError(
                "no prompt was given",
                expected=expected,
                got="an empty prompt",
                hint=f'add `--prompt "{example}"`',
            )

    def _check_options(self) -> None:
        """Refuse numbers that a step cannot work with."""
        require(self.machine.num_devices == 1, "machine.num_devices", "1", self.machine.num_devices)
        require(not self.steps_per_eval_batch, "steps_per_eval_batch", "0", self.steps_per_eval_batch)
        limit = self.max_minutes
        require(limit is None or limit > 0, "max_minutes", "a number above 0", limit)
        self.pipeline.check()

    def _check_prior(self) -> Path | None:
        """Refuse a prior that is not there, that cannot be asked, or whose autoencoder does not take the size
        of the views. Returns its folder; None for one on the hub."""
        pipeline = self.pipeline
        folder = check_prior(pipeline.prior)
        if folder is not None:
            pipeline.check_prior(image_conditioned=is_image_conditioned(folder))
            flag = f"--pipeline.{pipeline.size_option.replace('_', '-')}"
            check_short_side(getattr(pipeline, pipeline.size_option), vae_factor(folder), flag)
        return folder

    def _usual(self) -> Any:
        """This method's configuration before a command line changes it."""
        from csd_nerf.nerf.methods import METHODS

        return METHODS[str(self.method_name)]

    def _take_prompt_and_recipe(self) -> None:
        """Gather what may be said in several places."""
        self._take_prompt()
        self._take_recipe(self)
        self.pipeline.prompt = self.pipeline.prompt or self.prompt or ""  # a recipe may have either

    def _continue(self, run: Run, saved: "PromptedTrainerConfig") -> None:
        """Take all settings from the run so far, except those the user gave anew."""
        folder = run.checkpoint.parent.parent
        default = self._usual()
        if saved.recipe == self.recipe:
            # What the recipe says counts as not given: the run was begun with it, and with more.
            default = copy.deepcopy(default)
            self._take_recipe(default)
        if saved.method_name != self.method_name:
            raise InputError(
                f"{folder} was made by another method",
                expected=f"a run of {self.method_name} to be continued",
                got=f"a run of {saved.method_name}",
                hint=f"continue it with `ns-train {saved.method_name}`",
            )
        self.pipeline = adopt(self.pipeline, default.pipeline, saved.pipeline)
        if saved.pipeline.prompt != self.pipeline.prompt:
            raise InputError(
                f"{folder} was begun with another prompt",
                expected=f"the prompt it was begun with, {saved.pipeline.prompt!r}, to continue it",
                got=repr(self.pipeline.prompt),
                hint=self._other_prompt_hint(saved),
            )
        given = options_given(sys.argv[1:])
        for name in _CONTINUED:
            if name not in given and getattr(self, name) == getattr(default, name):
                setattr(self, name, getattr(saved, name))
        if self.max_minutes is not None and read_cost(folder) is None:
            raise InputError(
                f"nobody counted the minutes of {folder}",
                expected="cost.json in it, for --max-minutes to count on from",
                got="no such file",
                hint="leave out --max-minutes, or begin anew",
            )
        self.recipe = self.recipe or saved.recipe
        self.machine = adopt(self.machine, default.machine, saved.machine)
        CONSOLE.print(f"Going on with {folder}, up to {self.max_num_iterations} steps in all.")

    def _other_prompt_hint(self, saved: Any) -> str:
        """What to do instead of continuing a run with another prompt."""
        return "leave out --prompt, or leave out --load-dir to begin anew"

    def _take_prompt(self) -> None:
        """`--prompt`, `--pipeline.prompt` and nerfstudio's own `--pipeline.model.prompt` are one setting."""
        model = self.pipeline.model
        given = {prompt for prompt in (self.prompt, self.pipeline.prompt, model.prompt) if prompt}
        if len(given) > 1:
            raise InputError(
                "different prompts were given",
                expected="one prompt, by --prompt or --pipeline.prompt",
                got=" and ".join(map(repr, sorted(given))),
                hint="leave all but one out",
            )
        self.pipeline.prompt, model.prompt = next(iter(given), ""), None

    def _take_recipe(self, config: "PromptedTrainerConfig") -> None:
        if self.recipe is not None:
            given = options_given(sys.argv[1:])
            apply_recipe(config, self._usual(), str(self.method_name), self.recipe, given)


@dataclass
class EditTrainerConfig(PromptedTrainerConfig):
    """A trained scene (`--load-dir`) and a prompt; steps count from the start of the edit."""

    _target: Type = field(default_factory=lambda: EditTrainer)  # noqa: UP006
    pipeline: BaseEditPipelineConfig = field(default_factory=BaseEditPipelineConfig)
    """The edit."""

    def check(self) -> None:
        """Find the source run, complete this configuration from it, and refuse what cannot work.

        `--load-dir` may be a scene, which is then edited from the start, or an unfinished edit, which
        is then continued with its own settings except for those given anew.

        Raises:
            InputError: for a missing or empty prompt, run, dataset or prior, a recipe that does not fit, or a
                device that is absent.
        """
        self._take_prompt_and_recipe()
        run = find_run(self._run_path(), self.load_step)
        if isinstance(run.config, EditTrainerConfig):
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

    def _check_options(self) -> None:
        super()._check_options()
        datamanager = self.pipeline.datamanager
        if datamanager.photo_size is not None:
            # The prior is shown the photos: enlarged ones would be a blurred source.
            datamanager.photo_size = max(datamanager.photo_size, self.pipeline.render_size)

    def _check_prior(self) -> Path | None:
        folder = super()._check_prior()
        check_control(self.pipeline.control, folder)
        return folder

    def _begin_from_scene(self, run: Run, default: "EditTrainerConfig") -> None:
        """Take field sizes and data from the scene, where the user gave none."""
        self.pipeline.source_checkpoint = run.checkpoint
        if run.config is None:
            return
        scene: Any = run.config.pipeline
        usual, own = default.pipeline, self.pipeline.datamanager
        self.pipeline.model = adopt(self.pipeline.model, usual.model, scene.model)
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
        source = saved.pipeline.source_checkpoint
        if source is None or not source.exists():
            raise InputError(
                "the scene that this edit started from is gone",
                expected=f"{source}, for the before pictures and the viewer's reset",
                got="no such file",
                hint="put the source run back where it was",
            )

    def _other_prompt_hint(self, saved: Any) -> str:
        source = saved.pipeline.source_checkpoint
        return f"leave out --prompt, or edit the source scene: --load-dir {source}"

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


class SceneTrainer(Trainer):
    """nerfstudio's trainer, which names the settings to turn down when memory runs out."""

    @property
    def memory_settings(self) -> tuple[str, ...]:
        """Options that bound memory, in the order in which to turn them down."""
        return (
            "--pipeline.datamanager.train-num-rays-per-batch",
            "--pipeline.model.eval-num-rays-per-chunk",
        )

    def setup(self, test_mode: Any = "val") -> None:
        """Build everything; unusable input and too little memory end the program with a message."""
        with exit_on_input_error(), self._memory_explained():
            super().setup(test_mode)

    def _load_checkpoint(self) -> None:
        """Load as the parent does; a file that is no checkpoint is refused with a message."""
        if self.config.load_checkpoint is not None:
            read_checkpoint(self.config.load_checkpoint)
        super()._load_checkpoint()

    def train(self) -> None:
        """Train; too little memory ends the program with a message."""
        with exit_on_input_error(), self._memory_explained():
            super().train()

    @contextmanager
    def _memory_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            CONSOLE.print(
                f"[bold red]Out of memory ({str(error).splitlines()[0]}). Turn down, in this order: "
                f"{', '.join(self.memory_settings)}."
            )
            raise SystemExit(1) from None


class PromptedTrainer(SceneTrainer):
    """nerfstudio's trainer with steps that may fail, counted from the start whatever was loaded."""

    config: PromptedTrainerConfig
    pipeline: PromptedPipeline

    @property
    def memory_settings(self) -> tuple[str, ...]:
        """Options that bound memory, in the order in which to turn them down."""
        return tuple(f"--pipeline.{name}" for name in self.config.pipeline.memory_options)

    def setup(self, test_mode: Any = "val") -> None:
        """Build the pipeline and load what is to be gone on from."""
        self._skipped_in_a_row = 0
        self._meter: CostMeter | None = None
        super().setup(test_mode)

    def train(self) -> None:
        """Run to `max_num_iterations` steps in all, those of a run that is continued included.

        A run that has them already only draws its final pictures: it may have been killed before it could.
        """
        total = self.config
        remaining = total.max_num_iterations - self._start_step
        self._meter = self._start_meter()
        if remaining <= 0 or self._time_is_up():
            option = "--max-num-iterations" if remaining <= 0 else "--max-minutes"
            CONSOLE.print(f"All steps of this run are done (more: {option}). Drawing its pictures.")
            for callback in self.callbacks:
                callback.run_callback_at_location(self._start_step - 1, TrainingCallbackLocation.AFTER_TRAIN)
            return
        # The parent's number is of steps still to do; the progress display was set up with the total.
        self.config = dataclasses.replace(total, max_num_iterations=remaining)
        self._newest_step = max(self._start_step - 1, 0)
        try:
            super().train()
        finally:
            self.config = total

    def _start_meter(self) -> CostMeter | None:
        """Counts on from the run that is continued; None where that did not count from its beginning."""
        checkpoint = self.config.load_checkpoint
        if not self._start_step or checkpoint is None:
            return CostMeter(NOTHING, self.device)
        earlier = read_cost(checkpoint.parent.parent)
        return CostMeter(earlier, self.device) if earlier is not None else None

    def _time_is_up(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self._meter is not None and self._meter.seconds >= 60 * limit

    def _after_train(self) -> None:
        # A training that was told to stop has gone on to a step that it does not make.
        self.step = self._newest_step
        super()._after_train()

    def train_iteration(self, step: int) -> Any:
        """The parent's step, the last one when the time is up; skipped when a residual is not finite,
        explained when memory runs out."""
        self._newest_step = step
        try:
            result = super().train_iteration(step)
        except NonFiniteResidual as error:
            self._skipped_in_a_row += 1
            CONSOLE.print(f"[bold yellow]Step {step} skipped: {error}")
            if self._skipped_in_a_row >= NON_FINITE_STEPS_IN_A_ROW:
                CONSOLE.print(
                    f"[bold red]{self._skipped_in_a_row} steps in a row had no finite residual. Lower "
                    f"{self.config.pipeline.guidance_option}.text-guidance or use "
                    "--pipeline.prior-precision float32."
                    f"{self._save_before(step)}"
                )
                raise SystemExit(1) from None
            zero = torch.zeros((), device=self.pipeline.device)
            return zero, {}, {}
        except RuntimeError as error:
            if is_out_of_memory(error) and (saved := self._save_before(step)):
                CONSOLE.print(saved.strip())
            raise
        self._skipped_in_a_row = 0
        if self._time_is_up():
            self.stop_training = True
        return result

    def _save_before(self, step: int) -> str:
        """Save what was done before a step that failed; returns how to go on from there."""
        if step <= self._start_step:
            return ""
        self.save_checkpoint(step - 1)
        return f" The run so far is saved: continue with --load-dir {self.base_dir}"

    def save_checkpoint(self, step: int) -> None:
        """Save as the parent does, but in a way that a kill cannot leave half a checkpoint."""
        folder = self.checkpoint_dir
        self.checkpoint_dir = folder.with_name(f".{folder.name}-unfinished")
        try:
            super().save_checkpoint(step)
            name = f"step-{step:09d}.ckpt"
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(self.checkpoint_dir / name, folder / name)
            self.checkpoint_dir.rmdir()
        finally:
            self.checkpoint_dir = folder
        if self._meter is not None:
            evaluations = self.pipeline.unet_evaluations
            write_cost(self.base_dir, self._meter.total(steps=step + 1, unet_evaluations=evaluations))
        if self.config.save_only_latest_checkpoint:
            for older in folder.glob("step-*.ckpt"):
                if older.name != name:
                    older.unlink()


class EditTrainer(PromptedTrainer):
    """Begins at step 0 of the edit, or where its checkpoint ended."""

    config: EditTrainerConfig
    pipeline: BaseEditPipeline

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
            CONSOLE.print(f"Editing {source}: {self.config.pipeline.prompt!r}")
            return
        # The source's optimisers and schedulers are not those of the edit; the edit's own are.
        super()._load_checkpoint()


def check_device(device_type: str) -> None:
    """See that the device asked for is there.

    Raises:
        InputError: when it is not.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present[device_type]:
        raise InputError(
            f"there is no {device_type} device",
            expected=f"a device for --machine.device-type {device_type}",
            got=f"only {', '.join(name for name, there in present.items() if there)}",
            hint="use what is made for a CPU (csd-nerfacto-tiny, and --recipe tiny for an edit), "
            "or --machine.device-type cpu",
        )
