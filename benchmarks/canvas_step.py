"""Time one step of a picture's edit against the released order of work, and measure memory against size.

    python benchmarks/canvas_step.py --particles 4 16     # time
    python benchmarks/canvas_step.py --sizes 256 512 1024  # memory

**Time**: one step of CSD-Edit on N windows, gradient and SVGD, as `csd-nerf panorama` takes it (5 U-Net
evaluations a window, in as few calls as `--unet-batch-size` allows), and in the released code's order: window
by window, a call for the three branches of the target and one for those of the source, 6 evaluations. Both on
the same windows, noise and timestep, with the same guidance; a check sees that they say the same. They take
turns, so that other programs on the machine disturb both alike.

**Memory**: the most that tensors take beyond what was there before, of encoding, one step and decoding of
square pictures; beside it what the latents (four copies: edit, source, condition, gradient) and the edited
picture themselves take.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from csd_nerf.distillation import Guidance, Objective, svgd, weight
from csd_nerf.editors.loop import descend
from csd_nerf.editors.settings import PictureSettings
from csd_nerf.editors.tiles import LEAST_TILE, decode_tiles, encode_tiles
from csd_nerf.editors.window_canvas import Region, WindowCanvas
from csd_nerf.priors import Prior

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from memory import peak_bytes  # noqa: E402

PROMPT = "make it night"


@dataclass
class Options:
    """What to measure."""

    particles: tuple[int, ...] = ()
    """Windows of a step to time."""
    sizes: tuple[int, ...] = ()
    """Sides of pictures to measure the memory of, on a CPU."""
    repeats: int = 7
    """Steps timed of each kind; the median counts."""
    prior: str = "tiny-instruct"
    """Diffusion model, an InstructPix2Pix."""
    unet_batch_size: int = 20
    """U-Net rows evaluated at a time."""


def main(options: Options) -> None:
    settings = PictureSettings(prior=options.prior, unet_batch_size=options.unet_batch_size)
    prior = settings.load_prior()
    if options.particles:
        print("windows    ours (ms)   released order (ms)   ratio   difference of gradients")
    for count in options.particles:
        time_step(prior, settings, count, options.repeats)
    if options.sizes:
        print("picture       peak (MiB)   latents and picture (MiB)   rest (MiB)")
    for side in options.sizes:
        measure_memory(prior, settings, side)


def time_step(prior: Prior, settings: PictureSettings, count: int, repeats: int) -> None:
    """Print a row: both kinds of step on the same windows."""
    torch.manual_seed(0)
    side = settings.fitting_window(prior)
    pictures = torch.rand(count, 3, side, side, device=prior.device)
    source, condition = prior.encode(pictures), prior.condition(pictures)
    latents = source + 0.1 * torch.randn_like(source)
    objective = settings.objective(prior)
    timestep = prior.schedule.num_timesteps // 3

    def ours() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return objective.gradient(
            latents, source, condition, prompt=PROMPT, timestep=timestep, generator=generator
        ).gradient

    def released() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return released_order(objective, latents, source, condition, noise, timestep)

    with torch.no_grad():
        difference = float((ours() - released()).abs().max() / ours().abs().max())
        seconds: dict[Callable[[], Tensor], list[float]] = {ours: [], released: []}
        for _ in range(repeats):
            for step, times in seconds.items():
                began = _now(prior.device)
                step()
                times.append(_now(prior.device) - began)
    mine, theirs = (1000 * statistics.median(times) for times in seconds.values())
    print(f"{count:7d} {mine:12.0f} {theirs:21.0f} {theirs / mine:7.2f} {difference:25.1e}", flush=True)


def released_order(
    objective: Objective, latents: Tensor, source: Tensor, condition: Tensor, noise: Tensor, t: int
) -> Tensor:
    """The gradient of CSD-Edit, one window after the other, 6 evaluations each."""
    prior, config = objective.prior, objective.config
    guidance = Guidance(config.text_guidance, config.image_guidance)
    prompt, empty = prior.embed([PROMPT, ""])
    residuals = []
    for index in range(len(latents)):
        shown = condition[index]
        branches = torch.stack([torch.zeros_like(shown), shown, shown])
        guided = []
        for canvas, text in ((latents, prompt), (source, empty)):
            noisy = prior.schedule.add_noise(canvas[index], noise[index], t).expand(3, -1, -1, -1)
            predicted = prior.predict_noise(noisy, t, torch.stack([empty, empty, text]), branches)
            guided.append(guidance.combine(*predicted))
        residuals.append(guided[0] - guided[1])
    particles = prior.schedule.add_noise(latents, noise, t)
    return weight(prior.schedule, t, "one-minus-alpha") * svgd(torch.stack(residuals), particles)


def measure_memory(prior: Prior, settings: PictureSettings, side: int) -> None:
    """Print a row: what an edit of a square picture takes."""
    window = settings.fitting_window(prior)
    tile = max(window, LEAST_TILE)
    latent_side = side // prior.vae_factor
    own = 4 * (4 * prior.latent_channels * latent_side**2 + 3 * side**2)
    picture = torch.rand(3, side, side)

    def edit() -> None:
        source, condition = encode_tiles(prior, picture, tile)
        everywhere = Region(PROMPT, torch.ones(latent_side, latent_side))
        canvas = WindowCanvas(
            source, condition, [everywhere], window=window // prior.vae_factor, particles=settings.particles
        )
        for done in descend(canvas, settings.objective(prior), settings.descent()):
            if done.steps == 1:
                break
        decode_tiles(prior, canvas.latents, tile)

    prior.embed([PROMPT, ""])
    peak = peak_bytes(edit)
    figures = (peak / 2**20, own / 2**20, (peak - own) / 2**20)
    print(f"{side:4d} x {side:<4d} {figures[0]:13.1f} {figures[1]:27.1f} {figures[2]:12.1f}", flush=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(tyro.cli(Options))
