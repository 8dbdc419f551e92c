"""The loop that every long training shares: steps, and what it takes to be killed and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.parallel import copy_to_all
from training.progress import Job, Progress, learning_rate, save_whole

LARGEST_GRADIENT = 1.0
"""Norm to which the gradient of a step is cut."""

STEPS_PER_LINE = 50

LossOf = Callable[[float, torch.Generator], tuple[Tensor, Mapping[str, Tensor | float]]]
"""(share of the training that is done, the step's random numbers) to the loss and figures to print."""


class Stateful(Protocol):
    """What a checkpoint holds: a module, say."""

    def state_dict(self) -> Any:
        """Tensors by name, or in their order."""

    def load_state_dict(self, state: Any) -> Any:
        """Take them."""


def fit(
    name: str,
    job: Job,
    trained: Mapping[str, Stateful],
    optimiser: torch.optim.Optimizer,
    loss_of: LossOf,
    after_step: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train in place; goes on from `work/NAME-checkpoint.pt`.

    Args:
        name: of the stage.
        trained: everything that changes on the way but the optimiser, by its name in the checkpoint.
        optimiser: of the parameters; its learning rate is the peak.
        loss_of: called once in a step.
        after_step: called when the optimiser has taken it.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    peak_learning_rate = optimiser.defaults["lr"]
    worker = job.worker
    progress = Progress(job.budget, worker)
    saved: dict[str, Stateful] = {**trained, "optimiser": optimiser, "progress": progress}
    checkpoint = job.work / f"{name}-checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=worker.device, weights_only=True)
        for key, part in saved.items():
            part.load_state_dict(state[key])
    for part in trained.values():
        copy_to_all(_tensors(part.state_dict()), worker)
    losses: list[Tensor] = []

    while (fraction := progress.fraction()) < 1:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(fraction, progress.step, peak_learning_rate)
        loss, figures = loss_of(fraction, worker.generator(job.seed, progress.step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        worker.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimiser.step()
        progress.step += 1
        after_step(progress)
        losses.append(loss.detach())
        if progress.step % STEPS_PER_LINE == 0:
            shown = {"loss": torch.stack(losses).mean(), **figures}
            line = " ".join(f"{key} {float(value):.4g}" for key, value in shown.items())
            if worker.leads:
                print(f"{name} step {progress.step} {progress.seconds:.0f} s: {line}", flush=True)
            losses.clear()
        if progress.save_is_due():
            save_whole({key: part.state_dict() for key, part in saved.items()}, checkpoint)
    return progress


def _tensors(state: Mapping[str, Tensor] | list[Tensor]) -> Iterable[Tensor]:
    return state.values() if isinstance(state, Mapping) else state
