"""One seed for every step of a run, from the one seed that a user gives."""

import torch

STEPS_APART = 1_000_003
"""The seeds of one run's steps, before those of the next seed begin."""


def step_seed(seed: int, step: int) -> int:
    """Everything random in a step follows from here, so a resumed run repeats no step differently.

    Args:
        seed: of the run.
        step: its number, or that of a picture where each is one piece of work; below `STEPS_APART`.

    Example:
        >>> step_seed(seed=2, step=7)
        2000013
    """
    return seed * STEPS_APART + step


def begin_step(seed: int, step: int) -> None:
    """Seed all of torch that is in use for a step of a run.

    `torch.manual_seed` does the same, and on a machine without a GPU notes down at each call, with a stack
    trace, what a GPU is to be seeded with: by the step that is slow.

    Args:
        seed, step: as of `step_seed`.
    """
    number = step_seed(seed, step)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
