"""What a step of each method costs in U-Net evaluations, and how many steps a budget buys."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from csd_nerf.errors import InputError
from csd_nerf.nerf.dataset_pipeline import CsdDatasetPipelineConfig, SampledDatasetPipelineConfig
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.pipeline import EditPipelineConfig
from csd_nerf.nerf.trainer import EditTrainerConfig
from csd_nerf.priors.folder import is_image_conditioned
from csd_nerf.priors.loading import check_prior
from csd_nerf.settings_files import apply_recipe

PER_VIEW = "per-view"
"""InstructPix2Pix on each view by itself, the inconsistent extreme; no method of nerfstudio."""

EDITING = tuple(
    name
    for name, config in METHODS.items()
    if isinstance(config, EditTrainerConfig) and name != "csd-edit-tiny"
)
"""nerfstudio methods that can be compared; csd-edit-tiny is csd-edit with the recipe tiny."""

_ROWS = {"sds": (2, 3), "dds": (4, 6), "csd-edit": (5, 5), "pds": (4, 6)}
"""U-Net evaluations a view: of a text-to-image prior, and of one that is shown the picture."""
_STRUCTURE_ROWS = 2
"""U-Net evaluations a view of the structure loss `cut`: of the view and of the source."""


@dataclass(frozen=True)
class Price:
    """The smallest piece of a method's work.

    Attributes:
        evaluations: rows through the U-Net that it costs.
        steps: training steps that it takes.
    """

    evaluations: int
    steps: int

    def steps_for(self, evaluations: int) -> int:
        """The most steps that cost no more than so many evaluations."""
        return evaluations // self.evaluations * self.steps


def method_config(method: str, recipe: str | None) -> Any:
    """The configuration of a method with a recipe.

    Args:
        method: one of `EDITING`.
        recipe: see `apply_recipe`; None for none.

    Raises:
        InputError: the recipe does not fit.
    """
    config = copy.deepcopy(METHODS[method])
    if recipe is not None:
        apply_recipe(config, METHODS[method], method, recipe)
    return config


def price_of(config: Any) -> Price:
    """What a method costs.

    Score distillation into the field asks for every step: views times the evaluations of the residual and of
    the structure loss. The methods that replace training pictures ask once in `steps_per_update` steps: for
    each view of an update the steps of the descent (times as many) or of DDIM (times 3).

    Args:
        config: of the method, with the recipe; its prior must be on this machine or a hub id.
    """
    pipeline = config.pipeline
    if isinstance(pipeline, EditPipelineConfig):
        return Price(pipeline.particles * _rows(pipeline), 1)
    if isinstance(pipeline, CsdDatasetPipelineConfig):
        evaluations = pipeline.views_per_update * pipeline.descent.steps * _rows(pipeline)
    else:
        assert isinstance(pipeline, SampledDatasetPipelineConfig), type(pipeline)
        evaluations = pipeline.views_per_update * pipeline.sampling.steps * 3
    return Price(evaluations, pipeline.steps_per_update)


def _rows(pipeline: Any) -> int:
    residual = pipeline.objective.residual
    text_to_image, shown_the_picture = _ROWS[residual]
    folder = check_prior(pipeline.prior)
    # Of a model on the hub only the residual tells. sds asks both kinds; its own is Stable Diffusion.
    shown = residual == "csd-edit" if folder is None else is_image_conditioned(folder)
    structure = _STRUCTURE_ROWS if pipeline.objective.structure.loss == "cut" else 0
    return structure + (shown_the_picture if shown else text_to_image)


def steps_for(method: str, price: Price, evaluations: int) -> int:
    """Training steps of a method that a budget buys.

    Raises:
        InputError: not even the smallest piece.
    """
    steps = price.steps_for(evaluations)
    if steps < 1:
        raise InputError(
            f"the budget is too small for {method}",
            expected=f"at least {price.evaluations} U-Net evaluations, the smallest piece of its work",
            got=str(evaluations),
            hint=f"raise --evaluations, leave out {method}, or change the sizes of its updates in a recipe",
        )
    return steps


def needs_descriptions(config: Any) -> bool:
    """Whether a method is told what the scene shows before and after, instead of what to change."""
    return (
        isinstance(config.pipeline, EditPipelineConfig) and config.pipeline.objective.residual != "csd-edit"
    )
