"""Stage 4: the denoiser. 8 input channels: noisy target latents, and the photo's unscaled latents."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from csd_nerf.scenes.operators import TINTS
from training.latents import PAINTED, Variant, read_latents
from training.parallel import Worker, copy_to_all
from training.progress import Budget, Progress, learning_rate, save_whole
from training.text import UNKNOWN, load_text, tokenize
from training.vae import RAW_DEVIATION
from training.wordings import EDITS, unknown_sentences, with_extra_words, wordings

BATCH = 32
PEAK_LEARNING_RATE = 4e-4
EMA_DECAY = 0.998
DROPPED = 0.05
"""Probability of each: no text, no photo, neither. For classifier-free guidance on both."""

WINDOWS = ((0.8, 16), (1.01, 24))
"""Up to which share of the training, which window of the latents: small ones first, they are cheap."""

SHARES = {
    "sketch": 0.22, "painting": 0.18, "tint": 0.15, "winter": 0.13, "autumn": 0.12,
    "night": 0.07, "sepia": 0.06, "identity": 0.04, UNKNOWN: 0.03,
}  # fmt: skip
"""Share of the samples, the hardest edits first; unknown instructions are taught to change nothing."""

LARGEST_WEIGHT, WEIGHT_POWER = 12.0, 0.6
"""Loss weight min(abar^-0.6, 12): large edits are decided at high t, where plain epsilon loss says little."""

SNAPSHOT_SECONDS = 600


def new_unet() -> UNet2DConditionModel:
    """The untrained denoiser, 5.3 M parameters."""
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=8,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=(1, 3, 4),
        norm_num_groups=16,
    )


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
    """Training samples: scaled targets and unscaled photos, both (n, 4, w, w); text (n, L, d)."""

    targets: Tensor
    photos: Tensor
    text: Tensor


class Samples:
    """Draws instructions, photos and the edits that answer them."""

    def __init__(self, variants: list[Variant], texts: dict[str, Tensor], empty_text: Tensor) -> None:
        self.edited = [variant for variant in variants if PAINTED not in variant.targets]
        self.painted = [variant for variant in variants if PAINTED in variant.targets]
        self.texts, self.empty_text = texts, empty_text
        self.shares = torch.tensor(list(SHARES.values()))

    def draw(self, count: int, window: int, generator: torch.Generator) -> Batch:
        """`count` samples of `window` x `window` latents."""
        rows = [self._one(window, generator) for _ in range(count)]
        return Batch(*(torch.stack(column).float() for column in zip(*rows, strict=True)))

    def _one(self, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        edit = list(SHARES)[int(torch.multinomial(self.shares, 1, generator=generator))]
        pool = self.painted if edit == "painting" else self.edited
        variant = pool[_index(len(pool), generator)]
        target = variant.targets[self._target(edit, generator)]
        top = _index(target.shape[1] - window + 1, generator)
        left = _index(target.shape[2] - window + 1, generator)
        here = (slice(None), slice(top, top + window), slice(left, left + window))
        text = self.texts[edit][_index(len(self.texts[edit]), generator)]
        photo = variant.source[here]
        dropped = torch.rand((), generator=generator).item()
        if dropped < 2 * DROPPED:
            text = self.empty_text
        if DROPPED <= dropped < 3 * DROPPED:
            photo = torch.zeros_like(photo)
        return target[here] / RAW_DEVIATION, photo, text

    @staticmethod
    def _target(edit: str, generator: torch.Generator) -> str:
        if edit == "painting":
            return PAINTED
        if edit == "tint":
            return list(TINTS)[_index(len(TINTS), generator)]
        return "identity" if edit == UNKNOWN else edit


@torch.no_grad()
def text_tables(work: Path, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings (n, L, d) of the wordings of every edit, and (L, d) of the empty text."""
    tokenizer, encoder = load_text(work)
    generator = torch.Generator().manual_seed(seed)
    texts = {edit: [*wordings(edit), *with_extra_words(wordings(edit), generator)] for edit in EDITS}
    texts = {edit: texts[edit] + texts[edit][:1] * (len(texts[edit]) // 10) for edit in EDITS}
    texts[UNKNOWN] = unknown_sentences(600, generator)
    embed = {
        edit: encoder(tokenize(tokenizer, sentences)).last_hidden_state for edit, sentences in texts.items()
    }
    return embed, encoder(tokenize(tokenizer, [""])).last_hidden_state[0]


def train_unet(worker: Worker, work: Path, budget: Budget, seed: int, snapshot: Callable[[], None]) -> None:
    """Train, then write the averaged weights to `work/unet.pt`; goes on from `work/unet-checkpoint.pt`.

    Every ten minutes the averaged weights so far are written too, and `snapshot()` called.
    """
    torch.manual_seed(seed)
    unet = new_unet().to(worker.device)
    # Written-out attention: for so few tokens the fused kernel's backward takes a third of a step on a CPU.
    unet.set_attn_processor(AttnProcessor())
    parameters = list(unet.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, weight_decay=0.01, fused=True)
    progress = Progress(budget, worker)
    checkpoint = work / "unet-checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=worker.device, weights_only=True)
        unet.load_state_dict(state["unet"])
        average = state["average"]
        optimiser.load_state_dict(state["optimiser"])
        progress.restore(state["progress"])
    copy_to_all([*unet.state_dict().values(), *average], worker)
    samples = Samples(read_latents(work, worker.count), *text_tables(work, seed))
    kept = new_scheduler().alphas_cumprod
    weights = (kept**-WEIGHT_POWER).clamp(max=LARGEST_WEIGHT)
    last_snapshot = time.monotonic()
    running = 0.0

    while (fraction := progress.fraction()) < 1:
        generator = worker.generator(seed + 1, progress.step)
        window = next(size for end, size in WINDOWS if fraction < end)
        batch = samples.draw(BATCH // worker.count, window, generator)
        times = torch.randint(len(kept), (len(batch.targets),), generator=generator)
        noise = torch.randn(batch.targets.shape, generator=generator)
        signal, spread = (
            kept[times].sqrt().reshape(-1, 1, 1, 1),
            (1 - kept[times]).sqrt().reshape(-1, 1, 1, 1),
        )
        inputs = torch.cat([signal * batch.targets + spread * noise, batch.photos], 1).to(worker.device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(fraction, progress.step, PEAK_LEARNING_RATE)
        with torch.autocast(worker.device.type, torch.bfloat16):
            predicted = unet(inputs, times.to(worker.device), batch.text.to(worker.device)).sample
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
                f"unet step {progress.step} {progress.seconds:.0f} s: "
                f"window {window} loss {running / 50:.4f}",
                flush=True,
            )
            running = 0.0
        if progress.save_is_due():
            state = {"unet": unet.state_dict(), "average": average, "optimiser": optimiser.state_dict()}
            save_whole(state | {"progress": progress.state()}, checkpoint)
        if worker.leads and time.monotonic() - last_snapshot > SNAPSHOT_SECONDS:
            last_snapshot = time.monotonic()
            _write_average(average, progress, work)
            snapshot()

    if worker.leads:
        _write_average(average, progress, work)
    worker.wait()


def load_unet(work: Path) -> UNet2DConditionModel:
    """The denoiser with the averaged weights that `train_unet` left."""
    unet = new_unet()
    average = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["average"]
    for parameter, value in zip(unet.parameters(), average, strict=True):
        parameter.data.copy_(value)
    return unet.eval().requires_grad_(False)


def _write_average(average: list[Tensor], progress: Progress, work: Path) -> None:
    save_whole({"average": average, "progress": progress.state()}, work / "unet.pt")


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator).item())
