"""Training a model to tell the noise in latents: the loop that the U-Nets and the ControlNet share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from training.parallel import Worker, copy_to_all
from training.progress import Budget, Progress, learning_rate, save_whole

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
        targets: scaled latents (n, 4, w, w).
        shown: what the model sees beside the noisy latents, (n, k, ...); k is 0 where that is nothing.
        text: embeddings (n, L, d).
    """

    targets: Tensor
    shown: Tensor
    text: Tensor


Draw = Callable[[int, int, torch.Generator], Batch]
"""(count, window, generator) to `count` samples of `window` x `window` latents."""

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(noisy latents, timesteps, shown, text) to the noise."""


def train_denoiser(
    name: str,
    model: nn.Module,
    predict: Predict,
    draw: Draw,
    *,
    worker: Worker,
    work: Path,
    budget: Budget,
    peak_learning_rate: float,
    seed: int,
    snapshot: Callable[[], None],
) -> None:
    """Train, then write the averaged weights to `work/NAME.pt`; goes on from `work/NAME-checkpoint.pt`.

    Every ten minutes the averaged weights so far are written too, and `snapshot()` called.
    """
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=peak_learning_rate, weight_decay=0.01, fused=True)
    progress = Progress(budget, worker)
    checkpoint = work / f"{name}-checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=worker.device, weights_only=True)
        model.load_state_dict(state["model"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        progress.restore(state["progress"])
    copy_to_all([*model.state_dict().values(), *average], worker)
    kept = new_scheduler().alphas_cumprod
    weights = (kept**-WEIGHT_POWER).clamp(max=LARGEST_WEIGHT)
    last_snapshot = time.monotonic()
    running = 0.0

    while (fraction := progress.fraction()) < 1:
        generator = worker.generator(seed + 1, progress.step)
        window = next(size for end, size in WINDOWS if fraction < end)
        batch = draw(BATCH // worker.count, window, generator)
        times = torch.randint(len(kept), (len(batch.targets),), generator=generator)
        noise = torch.randn(batch.targets.shape, generator=generator)
        signal, spread = (
            kept[times].sqrt().reshape(-1, 1, 1, 1),
            (1 - kept[times]).sqrt().reshape(-1, 1, 1, 1),
        )
        inputs = (signal * batch.targets + spread * noise, times, batch.shown, batch.text)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(fraction, progress.step, peak_learning_rate)
        with torch.autocast(worker.device.type, torch.bfloat16):
            predicted = predict(*(part.to(worker.device) for part in inputs))
        errors = ((predicted.float() - noise.to(worker.device)) ** 2).mean((1, 2, 3))
        loss = (errors * weights[times].to(worker.device)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        worker.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        progress.step += 1
        decay = min(EMA_DECAY, (1 + progress.step) / (10 + progress.step))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        running += loss.item()
        if worker.leads and progress.step % 50 == 0:
            print(
                f"{name} step {progress.step} {progress.seconds:.0f} s: "
                f"window {window} loss {running / 50:.4f}",
                flush=True,
            )
            running = 0.0
        if progress.save_is_due():
            state = {"model": model.state_dict(), "average": average, "optimiser": optimiser.state_dict()}
            save_whole(state | {"progress": progress.state()}, checkpoint)
        if worker.leads and time.monotonic() - last_snapshot > SNAPSHOT_SECONDS:
            last_snapshot = time.monotonic()
            _write_average(average, progress, work / f"{name}.pt")
            snapshot()

    if worker.leads:
        _write_average(average, progress, work / f"{name}.pt")
    worker.wait()


def load_average(model: nn.Module, name: str, work: Path) -> None:
    """Give `model` the averaged weights that `train_denoiser` left, and freeze it."""
    average = torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True)["average"]
    for parameter, value in zip(model.parameters(), average, strict=True):
        parameter.data.copy_(value)
    model.eval().requires_grad_(False)


def _write_average(average: list[Tensor], progress: Progress, file: Path) -> None:
    save_whole({"average": average, "progress": progress.state()}, file)
