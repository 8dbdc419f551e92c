"""Training a model to tell the noise in latents: the loop that the U-Nets and the ControlNet share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from training.fitting import fit
from training.progress import Job, Progress, save_whole

BATCH = 32
EMA_DECAY = 0.998

WINDOWS = ((0.8, 16), (1.01, 24))
"""Up to which share of the training, which window of the latents: small ones first, they are cheap."""

LARGEST_WEIGHT, WEIGHT_POWER = 12.0, 0.6
"""Loss weight min(abar^-0.6, 12): large edits are decided at high t, where plain epsilon loss says little."""

SNAPSHOT_SECONDS = 600


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@dataclass(frozen=True)
class Batch:
    """Training samples.

    Args:
        targets: scaled latents (n, 4, w, w); of clips (n, 4, F, w, w), and so of all that follows.
        shown: what the model sees beside the noisy latents, (n, k, ...); k is 0 where that is nothing.
        text: embeddings (n, L, d).
    """

    targets: Tensor
    shown: Tensor
    text: Tensor


Draw = Callable[[int, int, torch.Generator], Batch]
"""(count, window, generator) to `count` samples of `window` x `window` latents."""


@dataclass(frozen=True)
class Corrupted:
    """What a model sees of its targets, and what it should say.

    Args:
        noisy: (n, 4, w, w).
        times: what the model is told of how noisy they are, (n,).
        answers: what the model is asked for, (n, 4, w, w).
        weights: of each in the loss, (n,).
    """

    noisy: Tensor
    times: Tensor
    answers: Tensor
    weights: Tensor


Corrupt = Callable[[Tensor, torch.Generator], Corrupted]
"""Targets to what becomes of them at random times."""

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy latents, times, shown, text) to the answers."""


def diffused(targets: Tensor, generator: torch.Generator) -> Corrupted:
    """Latents under Stable Diffusion's noise; what is asked for is the noise."""
    kept = new_scheduler().alphas_cumprod
    times = torch.randint(len(kept), (len(targets),), generator=generator)
    noise = torch.randn(targets.shape, generator=generator)
    signal, spread = (level[times].sqrt().reshape(-1, 1, 1, 1) for level in (kept, 1 - kept))
    weights = (kept[times] ** -WEIGHT_POWER).clamp(max=LARGEST_WEIGHT)
    return Corrupted(signal * targets + spread * noise, times, noise, weights)


def train_denoiser(
    name: str,
    job: Job,
    model: nn.Module,
    predict: Predict,
    draw: Draw,
    corrupt: Corrupt,
    *,
    peak_learning_rate: float,
    snapshot: Callable[[], None],
    windows: tuple[tuple[float, int], ...] = WINDOWS,
    of_batch: int = 1,
) -> None:
    """Train, then write the averaged weights to `work/NAME.pt`; goes on from `work/NAME-checkpoint.pt`.

    Every ten minutes the averaged weights so far are written too, and `snapshot()` called.

    Args:
        of_batch: pictures in a sample, of which a batch has fewer then.
    """
    worker = job.worker
    average = Average(list(model.parameters()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, weight_decay=0.01, fused=True)
    last_snapshot = time.monotonic()

    def loss_of(fraction: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        window = next(size for end, size in windows if fraction < end)
        batch = draw(max(BATCH // worker.count // of_batch, 1), window, generator)
        made = corrupt(batch.targets, generator)
        inputs = (made.noisy, made.times, batch.shown, batch.text)
        with torch.autocast(worker.device.type, torch.bfloat16):
            predicted = predict(*(part.to(worker.device) for part in inputs))
        errors = ((predicted.float() - made.answers.to(worker.device)) ** 2).flatten(1).mean(1)
        return (errors * made.weights.to(worker.device)).mean(), {"window": window}

    def after_step(progress: Progress) -> None:
        nonlocal last_snapshot
        average.update(progress.step)
        if worker.leads and time.monotonic() - last_snapshot > SNAPSHOT_SECONDS:
            last_snapshot = time.monotonic()
            write(progress)
            snapshot()

    def write(progress: Progress) -> None:
        state = {"average": average.state_dict(), "progress": progress.state_dict()}
        save_whole(state, job.work / f"{name}.pt")

    progress = fit(
        name,
        replace(job, seed=job.seed + 1),
        {"model": model, "average": average},
        optimiser,
        loss_of,
        after_step,
    )
    if worker.leads:
        write(progress)
    worker.wait()


class Average:
    """The exponential moving average of some parameters; young ones forget faster."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._values = [parameter.detach().clone() for parameter in parameters]

    def update(self, steps: int) -> None:
        """Take in the parameters after so many steps."""
        decay = min(EMA_DECAY, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self._values, [parameter.detach() for parameter in self._parameters], 1 - decay)

    def state_dict(self) -> list[Tensor]:
        """The average of each parameter, in their order."""
        return self._values

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Go on from a checkpoint."""
        self._values = state


def load_average(model: nn.Module, name: str, work: Path) -> None:
    """Give `model` the averaged weights that `train_denoiser` left, and freeze it."""
    average = torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["average"]
    for parameter, value in zip(model.parameters(), average, strict=True):
        parameter.data.copy_(value)
    model.eval().requires_grad_(False)
