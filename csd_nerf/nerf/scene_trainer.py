"""The trainer of a scene: checks its input first, and explains what ended it."""

import copy
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Optional, Type  # noqa: UP035 - nerfstudio's annotations, which tyro resolves

import torch
import tyro
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from csd_nerf import ranks
from csd_nerf.errors import (
    InputError,
    check,
    check_at_least,
    exit_on_input_error,
    is_out_of_memory,
    memory_explained,
)
from csd_nerf.files import LOCK, hold, remove, write_failed
from csd_nerf.nerf.captures import check_dataset
from csd_nerf.nerf.model import implementation_of, tcnn_runs_on
from csd_nerf.nerf.runs import find_paths, find_run, read_checkpoint

WITHOUT_TCNN = (
    "tiny-cuda-nn is not installed, or does not load: the fields run in torch, several times as slow and in "
    "more memory. What is trained so stays so: install it before a scene is trained."
)
"""Said once of a run on a GPU."""


@dataclass
class SceneTrainerConfig(TrainerConfig):
    """nerfstudio's trainer, with bad input refused before anything is built."""

    _target: Type = field(default_factory=lambda: SceneTrainer)  # noqa: UP006
    run_folder: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045
    """Where the run is, when that is not where nerfstudio puts what it trains: it was moved, or mixed by
    `csd-nerf blend`."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over settings, as from a config.yml.

        nerfstudio's programs look for a run where it was made. One that they open is where its file is.
        """
        self.__dict__.update(state)
        opened = _opened_by_nerfstudio()
        if opened is not None and self.experiment_name is not None and self.timestamp != "{timestamp}":
            made, self.run_folder = self.get_base_dir(), opened.absolute().parent
            find_paths(self, made, opened.parent)

    def get_base_dir(self) -> Path:
        """The run folder."""
        return self.run_folder or super().get_base_dir()

    def set_timestamp(self) -> None:
        """Check the input; nerfstudio calls this first once the command line is complete.

        A time that a run has already, as after a clock was set back, gets a number.
        """
        with exit_on_input_error():
            self.check()
        self._record_where()
        by_time = self.timestamp == "{timestamp}"
        super().set_timestamp()
        if by_time:
            self.timestamp = free_timestamp(self)

    def _record_where(self) -> None:
        """Let paths be absolute where the run lies elsewhere: relative ones are found by where it is."""
        if not self.output_dir.is_absolute() and ".." not in self.output_dir.parts:
            return
        manager: Any = self.pipeline.datamanager
        for owner, name in ((self, "data"), (manager, "data"), (self.pipeline, "source_checkpoint")):
            path = getattr(owner, name, None)
            if path is not None and path != Path():
                setattr(owner, name, path.absolute())

    def save_config(self) -> None:
        """Keep the run's folder to this process, and write the settings into it."""
        with exit_on_input_error():
            folder = self.get_base_dir()
            hold(folder / LOCK, of=folder, hint="wait for it to end, or choose another --timestamp")
        super().save_config()

    def print_to_terminal(self) -> None:
        """A line for nerfstudio's two hundred, which are those of the config.yml that it saves next."""
        CONSOLE.print(f"{self.method_name}: all settings will be in config.yml, --help explains them.")

    def check(self) -> None:
        """Refuse what cannot work; find the run that `--load-dir` names, to go on with.

        Raises:
            InputError: no steps, or more processes than GPUs; see `check_device`, `check_dataset`, `find_run`
                and `read_checkpoint`.
        """
        check_device(self.machine.device_type)
        check_at_least("max_num_iterations", self.max_num_iterations, 1)
        if self.load_dir is not None:
            self.load_checkpoint = find_run(self.load_dir, self.load_step).checkpoint
            self.load_dir = None
        datamanager: Any = self.pipeline.datamanager
        check_dataset(self.data or datamanager.data or datamanager.dataparser.data, datamanager.dataparser)
        self._check_processes()
        self._settle_implementation()

    def _check_processes(self) -> None:
        """Refuse processes that nerfstudio cannot begin: each of its own wants a GPU."""
        devices = self.machine.num_devices
        there = max(torch.cuda.device_count(), 1) if self.machine.device_type == "cuda" else 1
        check(
            1 <= devices <= there,
            "--machine.num-devices cannot be used",
            expected=f"1 to {there}, the GPUs of this machine; nerfstudio trains by one process on a CPU",
            got=devices,
        )
        check(
            not ranks.launched(),
            f"{self.method_name} begins its processes itself",
            expected="no torchrun, or one process of it",
            got="several",
            hint="pass --machine.num-devices to `ns-train`",
        )

    def _settle_implementation(self) -> None:
        """Let the configuration say what the fields will run in, before it is saved beside their weights.

        Weights that are there decide; else tiny-cuda-nn is taken where it runs.
        """
        model: Any = self.pipeline.model
        device = self.machine.device_type
        if self.load_checkpoint is not None:
            model.implementation = implementation_of(read_checkpoint(self.load_checkpoint)["pipeline"])
        elif not tcnn_runs_on(device):
            model.implementation = "torch"
        if device == "cuda" and not tcnn_runs_on(device):
            CONSOLE.print(Text(WITHOUT_TCNN, "bold yellow"), soft_wrap=True)


def _opened_by_nerfstudio() -> Path | None:
    """The config.yml of the run that the command line asks a program of nerfstudio to open.

    Not one that `ns-train` is given: that begins another run with its settings.
    """
    program, *words = sys.argv or [""]
    if Path(program).stem in ("ns-train", "train"):
        return None
    for word, following in pairwise([*words, ""]):
        option, _, value = word.partition("=")
        if option.replace("_", "-") == "--load-config":
            return Path(value or following)
    return None


def free_timestamp(config: TrainerConfig) -> str:
    """The timestamp of a configuration, or with `+2` and so on where a run of that name is there."""
    settings = copy.copy(config)
    first, number = config.timestamp.partition("+")[0], 1
    while settings.get_base_dir().exists():
        number += 1
        settings.timestamp = f"{first}+{number}"
    return settings.timestamp


class SceneTrainer(Trainer):
    """nerfstudio's trainer, which when memory runs out keeps what was done, and names what to turn down."""

    steps_done = 0
    """From the beginning of the run."""
    _dropped = 0
    """Steps whose gradient half precision could not hold."""

    @property
    def memory_settings(self) -> tuple[str, ...]:
        """Options that bound memory, in the order in which to turn them down."""
        return (
            "--pipeline.datamanager.train-num-rays-per-batch",
            "--pipeline.model.eval-num-rays-per-chunk",
        )

    def setup(self, test_mode: Any = "val") -> None:
        """Build everything; unusable input and too little memory end the program with a message."""
        with exit_on_input_error(), self._memory_explained(), _without_their_warnings():
            super().setup(test_mode)
            self.steps_done = self._start_step

    def _load_checkpoint(self) -> None:
        """Load as the parent does; a file that is no checkpoint is refused with a message."""
        checkpoint = self.config.load_checkpoint
        began_scaled = checkpoint is None or bool(read_checkpoint(checkpoint)["scalers"])
        with nullcontext() if began_scaled else self._loss_scale_left_alone():
            super()._load_checkpoint()

    @contextmanager
    def _loss_scale_left_alone(self) -> Iterator[None]:
        """While a run is loaded that had no loss scale, as on a CPU: one of half precision begins anew."""
        scaler = self.grad_scaler
        self.grad_scaler = GradScaler(enabled=False)  # type: ignore[assignment]  # loads any state
        try:
            yield
        finally:
            self.grad_scaler = scaler

    def train(self) -> None:
        """Train; too little memory ends the program with a message, and what was done is saved."""
        try:
            self._train_in_one_go()
        finally:
            self._end_drawing_for_viewers()

    def _train_in_one_go(self) -> None:
        """nerfstudio's training, which may be followed by another where there is a viewer."""
        with exit_on_input_error(), self._memory_explained(), _without_their_warnings():
            try:
                super().train()
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error) and (saved := self.save_what_is_done()):
                    CONSOLE.print(Text(saved), soft_wrap=True)
                raise
        if self._dropped > 1:
            CONSOLE.print(f"{self._dropped} steps were dropped, for the same reason as the first.")

    def _end_drawing_for_viewers(self) -> None:
        """Wait for the threads that draw for open tabs: one that still computes when the program ends would
        abort it, with all done and saved, and an exit status that says otherwise."""
        drawing = list(getattr(self.viewer_state, "render_statemachines", {}).values())
        for thread in drawing:
            thread.running = False
        for thread in drawing:
            thread.join()

    def train_iteration(self, step: int) -> Any:
        """The parent's step; what it returns is for the log, and holds nothing of the step.

        nerfstudio keeps it during the next step: with a graph, as much memory as that step itself needs.
        """
        scale = self.grad_scaler.get_scale()
        loss, losses, metrics = super().train_iteration(step)
        self.steps_done = step + 1
        if self.grad_scaler.get_scale() < scale:
            self._say_dropped(step)
        return loss.detach(), _detached(losses), _detached(metrics)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Save as the parent does, but whole or not at all, before an older one is removed; one process does.

        Raises:
            InputError: the file system refuses; what was saved before is there.
        """
        folder, name = self.checkpoint_dir, f"step-{step:09d}.ckpt"
        # Of several ranks that are parted, each may save what it has, which is the same.
        self.checkpoint_dir = folder.with_name(f".{folder.name}-unfinished-{ranks.number()}")
        try:
            super().save_checkpoint(step)
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(self.checkpoint_dir / name, folder / name)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own
            if is_out_of_memory(error):
                raise
            raise write_failed(folder / name, error) from error
        finally:
            remove(self.checkpoint_dir)
            self.checkpoint_dir = folder
        if self.config.save_only_latest_checkpoint:
            for older in folder.glob("step-*.ckpt"):
                if older.name < name:
                    older.unlink(missing_ok=True)

    def save_what_is_done(self) -> str:
        """Save what was done before a failure; returns how to go on from there, empty if that is nothing."""
        if self.steps_done <= self._start_step or not comms.is_main_process():
            return ""
        self.save_checkpoint(self.steps_done - 1)
        return f"The run so far is saved: continue with --load-dir {shlex.quote(str(self.base_dir))}"

    def _say_dropped(self, step: int) -> None:
        """Of the steps whose gradient half precision could not hold, say the first."""
        if not self._dropped:
            CONSOLE.print(
                f"Step {step} was dropped, in whole or in part: in half precision its gradient was too "
                "large. The loss is now scaled by less, until it fits. At the start, that is usual."
            )
        self._dropped += 1

    def _memory_explained(self) -> AbstractContextManager[None]:
        return memory_explained(
            expected="room for the scene and for a step of it",
            hint=f"turn down, in this order: {', '.join(self.memory_settings)}",
        )


@contextmanager
def _without_their_warnings() -> Iterator[None]:
    """Within it, nerfstudio and torch do not warn about their own code, line after line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"nerfstudio\.|torch\.")
        yield


def _detached(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}


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
