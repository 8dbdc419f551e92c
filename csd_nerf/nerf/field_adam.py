"""The optimiser of a field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from torch.nn import Parameter


@dataclass
class FieldAdamConfig(AdamOptimizerConfig):
    """Adam, on a CPU in one pass over the parameters instead of a dozen: a hash grid is large for a cache."""

    def setup(self, params: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Adam of these parameters; elsewhere torch chooses how."""
        params = list(params)
        on_cpu = all(parameter.device.type == "cpu" for parameter in params)
        return torch.optim.Adam(
            params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True if on_cpu else None
        )
