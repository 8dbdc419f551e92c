"""Editing pictures by score distillation without a scene: gradient descent on their latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation.objective import Distilled, Objective
from csd_nerf.errors import check


@dataclass
class DescentConfig:
    """How far latents go along the gradient: plain gradient descent with a rate that falls in stairs.

    The defaults are those of CSD's released code for pictures (2307.04787), StepLR(20, 0.9) in 200 steps,
    which go with the published kernel (`ObjectiveConfig.normalize_kernel` off). The step of that kernel
    shrinks as views are added; with rows that sum to one, 2 / (N + 1) of the rate for N views takes steps of
    the same length.
    """

    steps: int = 200
    """Steps of gradient descent on the latents."""
    learning_rate: float = 2.0
    """Of the first steps; with a kernel whose rows sum to one, 0.1 to 0.3 suits any number of views."""
    decay: float = 0.9
    """The learning rate is multiplied by this from one stair to the next; 1 leaves it as it is."""
    stairs: int = 10
    """Stretches of equal learning rate in an edit, however many steps it has."""
    growth: float = 1.0
    """What the learning rate is multiplied by from the first to the last step of an edit in rounds, besides.
    Short steps first let views that share nothing yet agree, long ones at the end bring back fine detail."""

    def check(self, options: str = "") -> None:
        """Refuse numbers that mean nothing.

        Args:
            options: what comes before their names where they are options of a command line,
                `--pipeline.descent.` for example.

        Raises:
            InputError: naming the setting.
        """
        for name, holds, expected in (
            ("steps", self.steps >= 0, "0 or more"),
            ("learning_rate", 0 < self.learning_rate < float("inf"), "a number above 0"),
            ("decay", 0 < self.decay <= 1, "above 0 and at most 1"),
            ("stairs", self.stairs >= 1, "1 or more"),
            ("growth", 0 < self.growth < float("inf"), "a number above 0"),
        ):
            setting = f"{options}{name.replace('_', '-')}" if options else name
            check(holds, setting, expected=expected, got=getattr(self, name))

    def rate(self, step: int, *, first_step: int = 0, of_steps: int | None = None) -> float:
        """Learning rate of a step (0-based) of an edit that has any.

        Args:
            step: within the round.
            first_step: the number of the round's first in the whole edit, 0-based.
            of_steps: of the whole edit; None is this round alone.

        Example:
            >>> [round(DescentConfig(steps=200).rate(step), 3) for step in (0, 19, 20, 199)]
            [2.0, 2.0, 1.8, 0.775]
            >>> growing = DescentConfig(steps=2, learning_rate=1, decay=1, growth=4)
            >>> [growing.rate(step, first_step=first, of_steps=6) for first in (0, 4) for step in (0, 1)]
            [1.0, 1.3195079107728942, 3.031433133020796, 4.0]
        """
        share = (first_step + step) / max((of_steps or self.steps) - 1, 1)
        return self.learning_rate * self.decay ** (self.stairs * step // self.steps) * self.growth**share


def edit_latents(
    objective: Objective,
    latents: Float[Tensor, "n c h w"],
    source: Float[Tensor, "n c h w"],
    condition: Float[Tensor, "n k h w"],
    *,
    prompt: str,
    descent: DescentConfig,
    source_prompt: str = "",
    first_step: int = 0,
    of_steps: int | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Distilled, Tensor], None] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Edit N pictures together in latent space (CSD-Edit for pictures, Kim et al., 2307.04787, section 4).

        x_i  <-  x_i - rate(step) g_i        g_i: `Objective.gradient`, which says how the pictures share

    Args:
        objective: what is descended, with its prior. Its transport makes the pictures agree, or not.
        latents: scaled latents to start from: `source`, or those of an edit so far.
        source: scaled latents of the unedited pictures, `prior.encode`.
        condition: `prior.condition` of the unedited pictures.
        prompt, source_prompt, generator: see `Objective.gradient`.
        descent: steps and learning rate. With 0 steps the latents come back as they are.
        first_step, of_steps: where in a longer edit these steps are, for annealed timesteps and a rate that
            grows: the number of the first (0-based), and how many there are in all; None is these alone.
        on_step: called after each step with its number (0-based), its outcome and the latents, for a
            progress display or a record.

    Returns:
        Edited latents, to be decoded by `prior.decode`; the arguments are left alone.

    Raises:
        NonFiniteResidual: the prior returned NaN or infinity.
        InputError: see `DescentConfig.check` and `Objective.gradient`.

    Example:
        >>> source, condition = prior.encode(pictures), prior.condition(pictures)     # doctest: +SKIP
        >>> edited = edit_latents(                                                    # doctest: +SKIP
        ...     objective, source, source, condition, prompt="make it night", descent=DescentConfig()
        ... )
        >>> prior.decode(edited)                                                      # doctest: +SKIP
    """
    descent.check()
    latents = latents.detach().clone()
    for step in range(descent.steps):
        distilled = objective.gradient(
            latents,
            source,
            condition,
            prompt=prompt,
            source_prompt=source_prompt,
            step=first_step + step,
            max_steps=of_steps or descent.steps,
            generator=generator,
        )
        rate = descent.rate(step, first_step=first_step, of_steps=of_steps)
        latents = latents - rate * distilled.gradient
        if on_step is not None:
            on_step(step, distilled, latents)
    return latents
