"""Which timestep a step distils at, and how much it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from csd_nerf.errors import check
from csd_nerf.priors.base import NoiseSchedule

Weighting = Literal["one-minus-alpha", "one-over-alpha", "uniform"]
Timesteps = Literal["uniform", "visited", "annealed"]


def weight(schedule: NoiseSchedule, t: int, weighting: Weighting) -> float:
    """The weight w(t) of a step.

    Args:
        weighting: "one-minus-alpha" is `1 - alphas_cumprod[t] = sigma_t^2`; "one-over-alpha" is
            `1 / alpha_t`, which takes the first factor off a flow's differences of noise,
            `(1 - s) (v - v~ + x - x~)`; "uniform" is 1.
    """
    if weighting == "one-over-alpha":
        return 1 / schedule.alphas[t].item()
    return schedule.sigmas[t].item() ** 2 if weighting == "one-minus-alpha" else 1.0


def shifted(u: float, time_shift: float) -> float:
    """Where on the schedule a sampler is after the fraction `1 - u` of its steps: `k u / (1 + (k - 1) u)`.

    Args:
        u: 0 to 1.
        time_shift: k, above 0; 1/k undoes it.

    Example:
        >>> shifted(0.5, 3.0), shifted(0.75, 1 / 3)
        (0.75, 0.5)
    """
    return time_shift * u / (1 + (time_shift - 1) * u)


@dataclass(frozen=True)
class TimestepRange:
    """The timesteps of an edit, one per step and shared by all particles.

    Args:
        low, high: bounds as fractions of the schedule's length, `0 <= low <= high <= 1`; both ends included.
        order: "uniform" draws every step's timestep from the range; "visited" draws it as often as the
            model's own sampler comes by (`Prior.time_shift`); "annealed" walks the range linearly from high
            to low over the edit, so that what is coarse is settled before what is fine.

    Raises:
        InputError: bounds out of order or out of range.
    """

    low: float
    high: float
    order: Timesteps = "uniform"

    def __post_init__(self) -> None:
        check(
            0 <= self.low <= self.high <= 1,
            "the range of timesteps is empty or out of bounds",
            expected="0 <= min_timestep <= max_timestep <= 1, as fractions of the noise schedule",
            got=f"min_timestep {self.low}, max_timestep {self.high}",
            hint="0.2 and 0.5 are the defaults",
        )

    def sample(
        self,
        num_timesteps: int,
        *,
        step: int = 0,
        max_steps: int = 1,
        time_shift: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> int:
        """The timestep of `step` (0-based, of `max_steps`), an index into a schedule of `num_timesteps`.

        Args:
            time_shift: of the prior, for "visited"; with 1 that draws evenly.
        """
        first, last = (round(bound * (num_timesteps - 1)) for bound in (self.low, self.high))
        if self.order == "annealed":
            progress = min(step / max(max_steps - 1, 1), 1.0)
            return round(last + (first - last) * progress)
        device = generator.device if generator is not None else "cpu"
        if self.order == "visited":
            low, high = (shifted(bound, 1 / time_shift) for bound in (self.low, self.high))
            place = low + (high - low) * torch.rand((), generator=generator, device=device).item()
            return round(shifted(place, time_shift) * (num_timesteps - 1))
        return int(torch.randint(first, last + 1, (), generator=generator, device=device))
