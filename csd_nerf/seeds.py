"""What decides every random choice."""


def step_seed(seed: int, step: int) -> int:
    """Everything random in a step follows from here, so a resumed edit repeats no step differently.

    Args:
        seed: of the whole run.
        step: its number, 0-based.
    """
    return seed * 1_000_003 + step
