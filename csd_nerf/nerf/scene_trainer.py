"""The trainer of a scene: checks its input first, and explains what ended it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from csd_nerf.errors import InputError, exit_on_input_error, memory_explained
from csd_nerf.nerf.datamanager import check_dataset
from csd_nerf.nerf.runs import find_run, read_checkpoint


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

    def _memory_explained(self) -> AbstractContextManager[None]:
        return memory_explained(
            expected="room for the scene and for a step of it",
            hint=f"turn down, in this order: {', '.join(self.memory_settings)}",
        )


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
