"""Adam on a network, with everything that a training needs to go on in one tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIRST_DECAY, SECOND_DECAY, LEAST = 0.9, 0.99, 1e-8
AVERAGED_STEPS = 50
"""About so many of the last steps are averaged; at first about a tenth of those that were."""


class Learner:
    """Adam (Kingma and Ba, 1412.6980), and a running average of the weights, which is less noisy.

    Args:
        network: whose weights are learnt, from now on views of the state.

    Attributes:
        state: (4, P): weights, their average, and Adam's two moments. Whoever copies another run's into it
            goes on exactly as that run did.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        self.state = torch.stack([weights, weights, torch.zeros_like(weights), torch.zeros_like(weights)])
        self._show(0)

    @torch.no_grad()
    def descend(self, loss: Tensor, step: int, rate: float) -> None:
        """Take a step down the gradient of a loss.

        Args:
            loss: a scalar of the network.
            step: number of this one, 0-based.
            rate: learning rate.
        """
        parts = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        weights, average, first, second = self.state
        first.lerp_(gradient, 1 - FIRST_DECAY)
        second.lerp_(gradient.square(), 1 - SECOND_DECAY)
        root = (second / (1 - SECOND_DECAY ** (step + 1))).sqrt() + LEAST
        weights -= rate / (1 - FIRST_DECAY ** (step + 1)) * first / root
        average.lerp_(weights, max(1 / AVERAGED_STEPS, 9 / (step + 10)))

    def show_average(self) -> None:
        """Let the network have the averaged weights."""
        self._show(1)

    def show_weights(self) -> None:
        """Let it have those that are learnt."""
        self._show(0)

    def _show(self, row: int) -> None:
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, self.state[row].split(sizes), strict=True):
            parameter.data = part.view_as(parameter)
