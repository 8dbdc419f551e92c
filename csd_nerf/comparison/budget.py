"""What a step of each method costs in U-Net evaluations, and how many steps a budget buys."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from csd_nerf.distillation.residuals import WITH_INSTRUCTION, evaluations, rows_of_a_question
from csd_nerf.errors import InputError, check
from csd_nerf.nerf.methods import METHODS
from csd_nerf.nerf.trainer import EditTrainerConfig
from csd_nerf.priors.base import GuidedBy
from csd_nerf.priors.folder import guided_by
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

_STRUCTURE_ROWS = 2
"""U-Net evaluations a view of the structure loss `cut`: of the view and of the source."""


@dataclass(frozen=True)
class Price:
    """The smallest piece of a method's work.

    Attributes:
        evaluations: rows through the U-Net that it costs.
        steps: training steps that it takes; None of a method that asks once, of as many views as it can pay,
            and then trains for its own number of steps.
    """

    evaluations: int
    steps: int | None


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

    A round asks about each of its views: in every step of the descent the evaluations of the residual and of
    the structure loss, or those of one guided answer in every step of DDIM. On the published gradient's route
    every training step is a round of one such step.

    Args:
        config: of the method, with the recipe; its prior must be on this machine or a hub id.

    Raises:
        InputError: a round is of every training view, or asks no diffusion model.
    """
    pipeline = config.pipeline
    asks_once = pipeline.route == "loop" and not pipeline.fits_per_round
    check(
        pipeline.particles > 0 or asks_once,
        f"a round of {config.method_name} has no price",
        expected="pipeline.particles of at least 1, where a budget is in U-Net evaluations",
        got="0, every training view, of which there may be any number",
        hint="give a number in a recipe, or compare by --minutes",
    )
    check(
        not pipeline.translates,
        f"a round of {config.method_name} has no price",
        expected="a diffusion model that is asked, where a budget is in U-Net evaluations",
        got=f"a translator, {pipeline.translator}",
        hint="compare by --minutes",
    )
    if pipeline.route == "gradient":
        return Price(pipeline.particles * _rows(pipeline), 1)
    if pipeline.edit == "flow-edit":
        a_view = pipeline.sampling.steps * evaluations("dvrf", _guided_by(pipeline))
    elif pipeline.edit == "sample":
        a_view = pipeline.sampling.steps * rows_of_a_question(_guided_by(pipeline))
    else:
        a_view = pipeline.descent.steps * _rows(pipeline)
    if asks_once:
        return Price(a_view, None)
    return Price(pipeline.particles * a_view, pipeline.fits_per_round)


def _rows(pipeline: Any) -> int:
    structure = _STRUCTURE_ROWS if pipeline.objective.structure.loss == "cut" else 0
    return structure + evaluations(pipeline.objective.residual, _guided_by(pipeline))


def _guided_by(pipeline: Any) -> GuidedBy:
    folder = check_prior(pipeline.prior)
    if folder is not None:
        return guided_by(folder)
    # Of a model on the hub only the edit tells: one that takes instructions is taken for an InstructPix2Pix.
    # sds asks any kind; its own is Stable Diffusion.
    instructed = not pipeline.distils or pipeline.objective.residual in WITH_INSTRUCTION
    return "picture-and-text" if instructed else "text"


@dataclass(frozen=True)
class Bought:
    """How a method spends a budget.

    Attributes:
        steps: training steps.
        views: that a method that asks once asks about; None of the others.
    """

    steps: int
    views: int | None = None


def spend(method: str, config: Any, evaluations: int) -> Bought:
    """What a method does with a budget.

    Args:
        method: by name, for the message.
        config: of it, with the recipe.
        evaluations: rows through the U-Net that it may cost.

    Raises:
        InputError: not even the smallest piece, or see `price_of`.
    """
    price = price_of(config)
    pieces = evaluations // price.evaluations
    if pieces < 1:
        raise InputError(
            f"the budget is too small for {method}",
            expected=f"at least {price.evaluations} U-Net evaluations, the smallest piece of its work",
            got=str(evaluations),
            hint=f"raise --evaluations, leave out {method}, or change the sizes of its rounds in a recipe",
        )
    if price.steps is None:
        return Bought(config.max_num_iterations, views=pieces)
    return Bought(pieces * price.steps)


def needs_descriptions(config: Any) -> bool:
    """Whether a method is told what the scene shows before and after, instead of what to change."""
    return config.pipeline.distils and config.pipeline.objective.residual not in WITH_INSTRUCTION
