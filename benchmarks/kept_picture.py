"""What it saves that a klein keeps what it knows of a photo, in time and at what price in memory.

    python benchmarks/kept_picture.py [--device cpu] [--tokens 16 32] [--rounds 3]

A klein of the class of FLUX.2-klein-9b-kv with a narrow transformer and random weights answers for 2 views,
as in a step of `csd-edit` (2 rows a view), with 512 words: with the tokens of the photos in every row, as a
klein that keeps nothing, and with what was kept of them. What is printed are the fastest answers of each
kind, in seconds of computing, and how far they differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_nerf.priors.flux2_klein_kv import Flux2KleinKV  # noqa: E402

VIEWS, ROWS_A_VIEW, WORDS = 2, 2, 512
T = 500
HEADS, HEAD_WIDTH = 4, 64
DOUBLE, SINGLE = 1, 3
WORD_WIDTH = 3 * 256


def new_prior(device: torch.device) -> Any:
    """A narrow klein, without a text encoder."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=WORD_WIDTH,
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return Flux2KleinKV(
        transformer=transformer.to(device),
        vae=vae.to(device),
        load_text=lambda: [],
        guided_by="itself",
        time_shift=1.0,
        unet_batch_size=VIEWS * ROWS_A_VIEW,
        vae_batch_size=1,
    )


def compare(prior: Any, tokens: int, rounds: int) -> None:
    """Of square views with so many tokens a side."""
    generator = torch.Generator().manual_seed(0)
    rows = VIEWS * ROWS_A_VIEW
    noisy = torch.randn(rows, 16, tokens, tokens, generator=generator).to(prior.device)
    photos = torch.randn(VIEWS, 16, tokens, tokens, generator=generator).to(prior.device)
    text = torch.randn(rows, WORDS, WORD_WIDTH, generator=generator).to(prior.device)

    condition = photos.repeat(ROWS_A_VIEW, 1, 1, 1)

    def with_all_tokens() -> torch.Tensor:
        sequence, places = prior._sequence(noisy, condition)
        with torch.no_grad():
            said = prior._evaluate(prior.transformer, sequence, places, prior._time(T, rows), text)
        return noisy + prior.schedule.alphas[T].item() * said.mT.unflatten(2, (tokens, tokens))

    def with_what_is_kept() -> torch.Tensor:
        return prior.predict_noise(noisy, T, text, condition)

    with_what_is_kept()  # and keep it
    alone, kept = (
        [timed(answer, prior.device) for _ in range(rounds)]
        for answer in (with_all_tokens, with_what_is_kept)
    )
    size = sum(part.nbytes for layers in prior._kept.values() for pair in layers for part in pair)
    before, after = (min(seconds for seconds, _ in runs) for runs in (alone, kept))
    difference = (alone[0][1] - kept[0][1]).abs().max().item()
    print(
        f"{tokens} x {tokens} tokens: with the photo's {before:.2f} s, kept {after:.2f} s, "
        f"{before / after:.2f} times as fast; largest difference {difference:.1e}; "
        f"{size / VIEWS / 2**20:.1f} MiB a photo",
        flush=True,
    )


def timed(answer: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds, on a CPU those of computing, for the machine may be shared; and the answer."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    said = answer()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32], help="a side of the views")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    prior = new_prior(torch.device(arguments.device))
    for tokens in arguments.tokens:
        compare(prior, tokens, arguments.rounds)


if __name__ == "__main__":
    main()
