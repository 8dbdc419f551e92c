"""The methods this package registers with nerfstudio, built from the files in `configs/`.

Every `ns-*` command imports this module: neither diffusers nor transformers may be imported from it.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfstudio.configs.external_methods import ExternalMethodDummyTrainerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from csd_nerf.errors import InputError
from csd_nerf.nerf.datamanager import EditDataManagerConfig, SceneDataManagerConfig
from csd_nerf.nerf.edit_pipeline import EditPipelineConfig
from csd_nerf.nerf.field_adam import FieldAdamConfig
from csd_nerf.nerf.generate import GeneratePipelineConfig
from csd_nerf.nerf.generate_trainer import GenerateTrainerConfig
from csd_nerf.nerf.model import CsdNerfactoModelConfig
from csd_nerf.nerf.registry import METHODS
from csd_nerf.nerf.scene_pipeline import ScenePipelineConfig
from csd_nerf.nerf.scene_trainer import SceneTrainerConfig
from csd_nerf.nerf.trainer import EditTrainerConfig
from csd_nerf.programs import begin_program
from csd_nerf.settings_files import CONFIGS, RECIPES, method_file, method_names, read_method, set_options


def _scene(datamanager: Any) -> TrainerConfig:
    return SceneTrainerConfig(
        pipeline=ScenePipelineConfig(datamanager=datamanager, model=CsdNerfactoModelConfig())
    )


_KINDS: dict[str, Callable[[], TrainerConfig]] = {
    "scene": lambda: _scene(ParallelDataManagerConfig(dataparser=NerfstudioDataParserConfig())),
    # Photos are reduced on reading, and there are no worker processes.
    "small-scene": lambda: _scene(SceneDataManagerConfig(dataparser=NerfstudioDataParserConfig())),
    "edit": lambda: EditTrainerConfig(
        pipeline=EditPipelineConfig(
            datamanager=EditDataManagerConfig(dataparser=NerfstudioDataParserConfig())
        )
    ),
    "generate": lambda: GenerateTrainerConfig(pipeline=GeneratePipelineConfig()),
}
"""What a file's `kind` begins as: a configuration whose numbers the file then sets."""


@dataclass
class _Adam:
    """How a group of parameters is trained."""

    lr: float = 1e-2
    """Learning rate of the first step."""
    lr_final: float | None = None
    """What it has fallen to, exponentially, after `max_steps`; None leaves it as it is."""
    max_steps: int = 200_000
    hash_grid: float = 1.0
    """Share of these rates at which entries of hash grids are trained."""

    def optimizer(self) -> dict[str, Any]:
        """In nerfstudio's form."""
        decay = None
        if self.lr_final is not None:
            decay = ExponentialDecaySchedulerConfig(lr_final=self.lr_final, max_steps=self.max_steps)
        adam = FieldAdamConfig(lr=self.lr, eps=1e-15, hash_grid=self.hash_grid)
        return {"optimizer": adam, "scheduler": decay}


def read_methods(folder: Path = CONFIGS) -> dict[str, MethodSpecification]:
    """Every method that has a file in a folder such as `configs/`, by name.

    Raises:
        InputError: naming the file, for an option that is not there or a value that it does not take.
    """
    return {name: _specification(name, folder) for name in method_names(folder)}


def _specification(name: str, folder: Path) -> MethodSpecification:
    file, settings = method_file(name, folder), read_method(name, folder)
    kind, description, optimizers = (settings.pop(key, None) for key in ("kind", "description", "optimizers"))
    if kind not in _KINDS or not isinstance(description, str) or not isinstance(optimizers, dict):
        raise InputError(
            f"{file} does not say what the method is",
            expected=f"a kind ({', '.join(_KINDS)}), a description, and optimizers by groups of parameters",
            got=f"kind {kind!r}, description {description!r}, optimizers {optimizers!r}",
            hint="write all three",
        )
    for elsewhere in ("editors", "translators", *RECIPES):
        settings.pop(elsewhere, None)
    config = _KINDS[kind]()
    config.method_name = name
    config.optimizers = {
        group: _optimizer(values, file, ("optimizers", group)) for group, values in optimizers.items()
    }
    if "objective" in settings:
        set_options(config.pipeline, {"objective": settings.pop("objective")}, file, path=("pipeline",))
    set_options(config, settings, file)
    return MethodSpecification(config=config, description=description)


def _optimizer(values: Any, file: Path, path: tuple[str, ...]) -> dict[str, Any]:
    adam = _Adam()
    set_options(adam, values, file, path=path)
    return adam.optimizer()


def _list_other_methods_quickly() -> None:
    """Shorten the start of every command of nerfstudio by seconds.

    Right after it has imported this, it lists the methods that could be installed. Each of them asks whether
    it is made for that list, by reading the source of all that is up the call stack. The name of its caller
    says the same.
    """
    offer_to_install = ExternalMethodDummyTrainerConfig.__post_init__

    def unless_listed(method: ExternalMethodDummyTrainerConfig) -> None:
        caller = sys._getframe(2)  # between it and this there is the dataclass's `__init__`
        if caller.f_code.co_name != "get_external_methods":
            offer_to_install(method)

    ExternalMethodDummyTrainerConfig.__post_init__ = unless_listed  # type: ignore[method-assign]


# Every command of nerfstudio imports this.
begin_program()
_list_other_methods_quickly()

_SPECIFICATIONS = read_methods()

METHODS |= {name: copy.deepcopy(method.config) for name, method in _SPECIFICATIONS.items()}

# `csd_edit` and all others: what the entry points of the package name.
globals().update({name.replace("-", "_"): method for name, method in _SPECIFICATIONS.items()})
