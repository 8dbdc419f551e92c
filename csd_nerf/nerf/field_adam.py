"""The optimiser of a field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from torch.nn import Parameter

from csd_nerf.errors import check
from csd_nerf.nerf.hash_grid import grid_entries


@dataclass
class FieldAdamConfig(AdamOptimizerConfig):
    """Adam, on a CPU in one pass over the parameters instead of a dozen: a hash grid is large for a cache."""

    hash_grid: float = 1.0
    """Learning rate of the entries of hash grids, as a share of `lr`, 0..1.

    Adam moves every entry that a ray meets by about the rate, however small its gradient is, so that a few
    thousand rays leave noise in the fine levels. The layers behind the grid, which all rays train, take a
    change that is everywhere without it.
    """

    def setup(self, params: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Adam of these parameters; elsewhere torch chooses how.

        Raises:
            InputError: `hash_grid` is not a share.
        """
        check(0 <= self.hash_grid <= 1, "optimizer.hash_grid", expected="0 to 1", got=self.hash_grid)
        params = list(params)
        on_cpu = all(parameter.device.type == "cpu" for parameter in params)
        options: dict[str, Any] = {"lr": self.lr, "eps": self.eps, "weight_decay": self.weight_decay}
        options["fused"] = True if on_cpu else None
        if self.hash_grid == 1:
            return torch.optim.Adam(params, **options)
        return _SlowGridAdam(params, self.hash_grid, **options)


class _SlowGridAdam(torch.optim.Adam):
    """Adam whose steps are shorter for entries of hash grids.

    Not by a group of parameters of their own: tiny-cuda-nn keeps the layers in the same tensor.

    Args:
        params: of which some hold entries, see `grid_entries`.
        share: of the step, 0..1.
    """

    def __init__(self, params: list[Parameter], share: float, **options: Any) -> None:
        super().__init__(params, **options)
        self._share = share

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of Adam, of which entries go their share."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        entries = [part for part in map(grid_entries, parameters) if part is not None]
        before = [part.clone() for part in entries]
        loss = super().step(closure)
        for part, start in zip(entries, before, strict=True):
            torch.lerp(start, part, self._share, out=part)
        return loss
