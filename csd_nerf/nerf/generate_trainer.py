"""The trainer of text-to-3D: from nothing, or on from where a run ended."""

import re
from dataclasses import dataclass, field
from typing import Type  # noqa: UP035 - nerfstudio's own `_target` annotation, which tyro resolves

from nerfstudio.utils.rich_utils import CONSOLE
from rich.text import Text

from csd_nerf.errors import InputError
from csd_nerf.nerf.generate import GeneratePipeline, GeneratePipelineConfig
from csd_nerf.nerf.prompted_trainer import PromptedTrainer, PromptedTrainerConfig
from csd_nerf.nerf.runs import find_run
from csd_nerf.nerf.scene_trainer import check_device


@dataclass
class GenerateTrainerConfig(PromptedTrainerConfig):
    """A prompt and no data; `--load-dir` only to go on with a run."""

    _target: Type = field(default_factory=lambda: GenerateTrainer)  # noqa: UP006
    pipeline: GeneratePipelineConfig = field(default_factory=GeneratePipelineConfig)
    """What to build, and how."""

    def check(self) -> None:
        """Complete this configuration from the run to go on with, if any, and refuse what cannot work.

        Raises:
            InputError: for a missing or empty prompt, a recipe that does not fit, a run of another method,
                data, cameras that there are not, a prior that is absent or cannot make up pictures, or a
                device that is absent.
        """
        self._take_prompt_and_recipe()
        path = self.load_dir or self.load_checkpoint
        if path is not None:
            run = find_run(path, self.load_step)
            if not isinstance(run.config, GenerateTrainerConfig):
                raise InputError(
                    f"{path} is not a generated scene",
                    expected=f"a run of {self.method_name} to be continued, with its config.yml",
                    got="no config.yml" if run.config is None else f"a run of {run.config.method_name}",
                    hint="leave out --load-dir: a scene is generated from nothing; to change one that is "
                    "there use `ns-train csd-edit`",
                )
            self._continue(run, run.config)
            self.load_dir, self.load_checkpoint = None, run.checkpoint
        check_device(self.machine.device_type)
        data = self.data or self.pipeline.datamanager.data
        if data is not None:
            raise InputError(
                "a scene is generated from a prompt alone",
                expected="no --data",
                got=str(data),
                hint="leave --data out; to change a captured scene, train it and use `ns-train csd-edit`",
            )
        self._check_prompt("what to generate, in words", "a corgi")
        self._check_processes()
        self._check_options()
        self._check_prior()
        self._settle_implementation()
        if self.experiment_name is None:  # nerfstudio would take it from the data
            self.experiment_name = _folder_name(self.pipeline.prompt)


def _folder_name(prompt: str) -> str:
    """A prompt as the name of a folder: "A corgi, in the snow!" is a-corgi-in-the-snow."""
    words = re.findall(r"\w+", prompt.lower())
    return "-".join(words)[:60] or "unnamed"


class GenerateTrainer(PromptedTrainer):
    """Begins at step 0 with a blob, or where its checkpoint ended."""

    config: GenerateTrainerConfig
    pipeline: GeneratePipeline

    def _load_checkpoint(self) -> None:
        config = self.config
        self.pipeline.begin(seed=config.machine.seed, max_steps=config.max_num_iterations)
        if config.load_checkpoint is None:
            CONSOLE.print(Text(f"Generating {config.pipeline.prompt!r}"), soft_wrap=True)
        super()._load_checkpoint()
