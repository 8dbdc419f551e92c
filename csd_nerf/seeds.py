"""One seed for every step of a run, from the one seed that a user gives."""

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
