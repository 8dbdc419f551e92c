"""The trainer of what follows a prompt: its settings, steps that may fail, and going on with a run."""

import copy
import dataclasses
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Optional, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
import yaml
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text

from csd_nerf import ranks
from csd_nerf.cameras import check_short_side
from csd_nerf.distillation.objective import NonFiniteResidual
from csd_nerf.errors import InputError, check, check_at_least, option
from csd_nerf.files import write_text
from csd_nerf.nerf.closing_words import viewer_command
from csd_nerf.nerf.cost import NOTHING, CostMeter, read_cost, write_cost
from csd_nerf.nerf.ctrl_c import EXIT_STATUS_INTERRUPTED, ctrl_c_asks, ctrl_c_leaves
from csd_nerf.nerf.prompted import PromptedPipeline, PromptedPipelineConfig
from csd_nerf.nerf.registry import METHODS
from csd_nerf.nerf.requests import Requests
from csd_nerf.nerf.runs import Run, adopt
from csd_nerf.nerf.scene_trainer import SceneTrainer, SceneTrainerConfig
from csd_nerf.priors.folder import is_image_conditioned, vae_factor
from csd_nerf.priors.loading import check_prior
from csd_nerf.settings_files import apply_recipe, options_given

NON_FINITE_STEPS_IN_A_ROW = 5
"""So many skipped steps in a row end the edit: it will not recover by itself."""

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

    def plan(self, steps: int) -> None:
        """Let the whole run have so many steps."""
        self.max_num_iterations = steps

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
        evaluation, limit = self.steps_per_eval_batch, self.max_minutes
        check(
            self.machine.device_type != "mps",
            option("machine.device_type"),
            expected="cuda or cpu: views are weighed against each other in double precision",
            got="mps, which has none",
            hint="pass --machine.device-type cpu",
        )
        check(not evaluation, option("steps_per_eval_batch"), expected="0", got=evaluation)
        check(limit is None or limit > 0, option("max_minutes"), expected="a number above 0", got=limit)
        self.pipeline.check()

    @property
    def _processes(self) -> int:
        """How many are to work on the run: of those that were launched, or that are to be."""
        return ranks.count() if ranks.launched() else self.machine.num_devices * self.machine.num_machines

    def _check_processes(self) -> None:
        """Refuse more processes than can work on the run."""
        for name in ("num_devices", "num_machines"):
            given = getattr(self.machine, name)
            check(given == 1, option(f"machine.{name}"), expected="1", got=given)
        check(
            not ranks.launched(),
            f"{self.method_name} runs in one process",
            expected="no torchrun, or one process of it",
            got="several",
            hint="begin it by `ns-train`",
        )

    def _check_prior(self) -> Path | None:
        """Refuse a prior that is not there, that cannot be asked, or whose autoencoder does not take the size
        of the views. Returns its folder; None for one on the hub."""
        pipeline = self.pipeline
        folder = check_prior(pipeline.prior, clips_too=pipeline.clips_too)
        if folder is not None:
            pipeline.check_prior(image_conditioned=is_image_conditioned(folder))
            flag = f"--pipeline.{pipeline.size_option.replace('_', '-')}"
            check_short_side(getattr(pipeline, pipeline.size_option), vae_factor(folder), flag)
        return folder

    def _usual(self) -> Any:
        """This method's configuration before a command line changes it."""
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
                hint=f"continue it with `ns-train {shlex.quote(str(saved.method_name))}`",
            )
        said = options_given(sys.argv[1:])
        self.pipeline = adopt(self.pipeline, default.pipeline, saved.pipeline, said, "pipeline.")
        if saved.pipeline.prompt != self.pipeline.prompt:
            raise InputError(
                f"{folder} was begun with another prompt",
                expected=f"the prompt it was begun with, {saved.pipeline.prompt!r}, to continue it",
                got=repr(self.pipeline.prompt),
                hint=self._other_prompt_hint(saved),
            )
        for name in _CONTINUED:
            if name not in said and getattr(self, name) == getattr(default, name):
                setattr(self, name, getattr(saved, name))
        if self.max_minutes is not None and read_cost(folder) is None:
            raise InputError(
                f"nobody counted the minutes of {folder}",
                expected="cost.json in it, for --max-minutes to count on from",
                got="no such file",
                hint="leave out --max-minutes, or begin anew",
            )
        self.recipe = self.recipe or saved.recipe
        self.machine = adopt(self.machine, default.machine, saved.machine, said, "machine.")
        steps = self.max_num_iterations
        CONSOLE.print(Text(f"Going on with {folder}, up to {steps} steps in all."), soft_wrap=True)

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


class _LockedAtTheEnd(TrainingCallback):
    """A callback that has the model to itself after training, where nerfstudio does not hold the lock."""

    def __init__(self, callback: TrainingCallback, lock: Lock) -> None:
        self._callback, self._lock = callback, lock

    def run_callback_at_location(self, step: int, location: TrainingCallbackLocation) -> None:
        with self._lock if location is TrainingCallbackLocation.AFTER_TRAIN else nullcontext():
            self._callback.run_callback_at_location(step, location)


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
        self._interrupted = False
        self.requests = Requests()
        self._whole = self.config
        # What is built from it writes tensors into it, which config.yml is not to hold.
        self._recorded = copy.deepcopy(self.config)
        self._is_unsaved = self._is_waiting = self._is_scene_drawn = False
        # The viewer draws from a thread of its own as soon as there is a pipeline, and switches the model to
        # evaluation while it does: what is drawn and measured at the start has the model to itself.
        try:
            with self.train_lock:
                super().setup(test_mode)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_STATUS_INTERRUPTED) from None
        self._lock_callbacks()
        self.pipeline.controls.begun()

    def _lock_callbacks(self) -> None:
        self.callbacks = [_LockedAtTheEnd(callback, self.train_lock) for callback in self.callbacks]
        self.callbacks.append(
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self._say_what_is_left)
        )

    def train(self) -> None:
        """Run to `max_num_iterations` steps in all, those of a run that is continued included.

        A run that has them already only draws its final pictures: it may have been killed before it could.
        Where there is a viewer, it then waits for what is asked for there.

        Raises:
            SystemExit: 130, once all is saved, when Ctrl-C ended the run.
        """
        self._meter = self._start_meter()
        try:
            self._train_and_wait()
        finally:
            self._end_drawing_for_viewers()

    def _train_and_wait(self) -> None:
        is_shown = self.pipeline.controls.is_shown
        if is_shown and self.training_state == "paused":
            self._wait()
            if self._is_waiting:
                return
        self._until_interrupted()
        while is_shown and not self._whole.viewer.quit_on_train_completion:
            self._wait()
            if self._is_waiting:
                return
            self._start_step = self.steps_done
            self._until_interrupted()

    def _until_interrupted(self) -> None:
        with ctrl_c_asks(self._end_after_step):
            self._train_to_the_end()
        if self._interrupted:
            raise SystemExit(EXIT_STATUS_INTERRUPTED)

    def _end_after_step(self) -> None:
        self._interrupted = self.stop_training = True
        CONSOLE.print(
            "\nEnding after this step, with checkpoint and pictures. Ctrl-C again: at once, without."
        )

    def _train_to_the_end(self) -> None:
        total = self.config
        remaining = total.max_num_iterations - self._start_step
        if remaining <= 0 or self._time_is_up():
            more = "--max-num-iterations" if remaining <= 0 else "--max-minutes"
            CONSOLE.print(f"All steps of this run are done (more: {more}). Drawing its pictures.")
            self.save_checkpoint(self._start_step - 1)  # where it is not the folder that was loaded
            for callback in self.callbacks:
                callback.run_callback_at_location(self._start_step - 1, TrainingCallbackLocation.AFTER_TRAIN)
            return
        # The parent's number is of steps still to do; the progress display was set up with the total.
        self.config = dataclasses.replace(total, max_num_iterations=remaining)
        self._newest_step = max(self._start_step - 1, 0)
        self.training_state = "training"
        try:
            self._train_in_one_go()
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
        if limit is None or self._meter is None:
            return False
        return ranks.as_first(self._meter.seconds >= 60 * limit)

    def _after_train(self) -> None:
        # A training that was told to stop has gone on to a step that it does not make.
        self.step = self._newest_step
        super()._after_train()

    def _say_what_is_left(self, step: int) -> None:
        """The end of a run, in the lines that matter: its pictures, what to do with it, its cost."""
        lines = {"Pictures and turntable": str(self.base_dir), **self.commands()}
        cost = read_cost(self.base_dir)
        if cost is not None:
            lines["Cost"] = cost.in_words()
        if self._interrupted and step + 1 < self.config.max_num_iterations + self._start_step:
            lines[f"Ended after {step + 1} steps. To go on"] = self._continue_command()
        for name, line in lines.items():
            CONSOLE.print(Text(f"{name}: {line}"), soft_wrap=True)

    def commands(self) -> dict[str, str]:
        """What to do with the run now, by a word on it."""
        return {"Look": viewer_command(self.base_dir)}

    def _continue_command(self) -> str:
        command = ["ns-train", str(self.config.method_name), "--load-dir", str(self.base_dir)]
        if self.config.output_dir != METHODS[str(self.config.method_name)].output_dir:
            command += ["--output-dir", str(self.config.output_dir)]
        return shlex.join(command)

    # ---------------------------------------------------------------- asked for from a viewer

    @property
    def steps_planned(self) -> int:
        """Of the whole run."""
        return self._whole.max_num_iterations

    def change_prompt(self, prompt: str) -> None:
        """Follow another prompt, from the next round on.

        Raises:
            InputError: it is blank.
        """
        self.pipeline.check_words(prompt)
        self.pipeline.prompt.value = prompt.strip()
        self.save_settings()

    def save_settings(self) -> None:
        """Write what was changed to config.yml: once for all that is asked for at a time."""
        self._is_unsaved = True

    def stop_and_keep(self) -> None:
        """End after the step that is being made, as if it had been the last."""
        self.stop_training = True

    def go_on(self) -> None:
        """Make the steps that are left.

        Raises:
            InputError: steps are being made already.
        """
        self._check_waits()
        self._is_waiting = False

    def more_steps(self, steps: int) -> None:
        """Go on, to so many steps more than were planned.

        Raises:
            InputError: steps are being made already; or it is none.
        """
        self._check_waits()
        check_at_least("steps", steps, 1)
        if self._time_is_up():
            self._whole.max_minutes = None
        self._plan(self.steps_planned + steps)
        self.go_on()

    def _plan(self, steps: int) -> None:
        self._whole.plan(steps)
        self.pipeline.plan(steps)
        writer.GLOBAL_BUFFER["max_iter"] = steps
        self.save_settings()

    def _check_waits(self) -> None:
        if not self._is_waiting:
            raise InputError(
                "steps are being made",
                expected="a run that has stopped",
                got="one that goes on",
                hint="press Stop and keep first",
            )

    def _wait(self) -> None:
        """Do what is asked for until that is to go on; after Ctrl-C it still waits."""
        self._is_waiting = True
        self.pipeline.controls.has_stopped()
        with ctrl_c_leaves():
            while self._is_waiting:
                with self.train_lock:
                    self._serve()
                time.sleep(0.05)
            self.pipeline.controls.is_running()

    def _serve(self) -> None:
        self.requests.serve()
        self._write_settings()

    def _write_settings(self) -> None:
        if self._is_unsaved:
            self._is_unsaved = False
            recorded = self._recorded
            for name in ("timestamp", "load_checkpoint", "max_minutes"):
                setattr(recorded, name, getattr(self._whole, name))
            recorded.plan(self.steps_planned)
            self.pipeline.note_changes(self.pipeline.config)
            self.pipeline.note_changes(recorded.pipeline)
            write_text(self.base_dir / "config.yml", yaml.dump(recorded))

    # ---------------------------------------------------------------- the parent's ways to a viewer

    def _init_viewer_state(self) -> None:
        if not self._is_scene_drawn:
            super()._init_viewer_state()
        self._is_scene_drawn = True

    def _update_viewer_state(self, step: int) -> None:
        if self.pipeline.controls.is_shown:
            self.pipeline.controls.after_step()
        else:
            super()._update_viewer_state(step)

    def _train_complete_viewer(self) -> None:
        # The parent's stays in there; `train` waits instead, for there may be more to do.
        if not self._interrupted and not self.pipeline.controls.is_shown:
            with ctrl_c_leaves():
                super()._train_complete_viewer()

    # ---------------------------------------------------------------- a step

    def train_iteration(self, step: int) -> Any:
        """The parent's step, the last one when the time is up; skipped when a residual is not finite, and
        with what was done before it saved when another rank is gone."""
        try:
            return self._try_step(step)
        except ranks.Parted as parted:
            raise ranks.Parted(f"{parted} {self.save_what_is_done()}".rstrip()) from None

    def _try_step(self, step: int) -> Any:
        self._serve()
        self._newest_step = step
        try:
            result = super().train_iteration(step)
        except NonFiniteResidual as error:
            self._skipped_in_a_row += 1
            CONSOLE.print(Text(f"Step {step} skipped: {error}", "bold yellow"))
            if self._skipped_in_a_row >= NON_FINITE_STEPS_IN_A_ROW:
                why = (
                    f"{self._skipped_in_a_row} steps in a row had no finite residual. Lower "
                    f"{self.config.pipeline.guidance_option}.text-guidance or use "
                    f"--pipeline.prior-precision float32. {self.save_what_is_done()}"
                )
                CONSOLE.print(Text(why.rstrip(), "bold red"), soft_wrap=True)
                raise SystemExit(1) from None
            zero = torch.zeros((), device=self.pipeline.device)
            self.steps_done = step + 1
            return zero, {}, {}
        self._skipped_in_a_row = 0
        if self._meter is not None:
            self._meter.look()
        # nerfstudio begins by setting it to False: an interruption before that is not forgotten.
        self._interrupted = ranks.any_says(self._interrupted)
        if self._time_is_up() or self._interrupted:
            self.stop_training = True
        return result

    def save_checkpoint(self, step: int) -> None:
        """Save as the parent does, and what it cost; one rank does."""
        if not ranks.leads():
            return
        super().save_checkpoint(step)
        if self._meter is not None:
            evaluations = self.pipeline.unet_evaluations
            write_cost(self.base_dir, self._meter.total(steps=step + 1, unet_evaluations=evaluations))
