"""`tiny-flow`'s denoiser: a small FLUX.1 Kontext, trained on what `tiny-instruct` learns from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional

from training.denoising import Corrupted, load_average, train_denoiser
from training.latents import read_latents
from training.progress import Job
from training.text import load_text, tokenize
from training.unet import WIDE_INSTRUCT, Samples, UnetRecipe, texts_by_edit
from training.vae import RAW_DEVIATION
from training.wide_vae import CHANNELS
from training.words import WIDTH, load_words, tokenize_words

FLOW = replace(WIDE_INSTRUCT, name="flow", photo_dropped=False, begins_as=None)
"""A transformer of this class is guided by text alone: it always sees the photo."""

PEAK_LEARNING_RATE = 1e-3
TIME_SHIFT = 2.0
"""How much more is learnt of noise than of pictures: what an edit is decided there."""

WINDOWS = ((1.01, 16),)
"""Small ones to the end: places count only as differences, and larger pictures come out no worse."""

PATCH = 2
HEADS, HEAD_WIDTH = 6, 32
PLACE_WIDTHS = (4, 14, 14)
"""Of a head's numbers, those that say in which picture, in which row and in which column."""


def new_transformer() -> FluxTransformer2DModel:
    """The untrained denoiser."""
    transformer = FluxTransformer2DModel(
        in_channels=CHANNELS * PATCH**2,
        num_layers=1,
        num_single_layers=6,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=PLACE_WIDTHS,
    )
    begin_plain(transformer)
    begin_looking_at_the_photo(transformer)
    return transformer


@torch.no_grad()
def begin_plain(transformer: FluxTransformer2DModel) -> None:
    """Let neither time nor text matter at first, all gates be open, and the answer be zero."""
    width = transformer.inner_dim
    for block in transformer.transformer_blocks:
        for modulation in (block.norm1.linear, block.norm1_context.linear):
            modulation.weight.zero_()
            modulation.bias.zero_()
            modulation.bias[2 * width : 3 * width] = 1
            modulation.bias[5 * width :] = 1
    for block in transformer.single_transformer_blocks:
        block.norm.linear.weight.zero_()
        block.norm.linear.bias.zero_()
        block.norm.linear.bias[2 * width :] = 1
    for last in (transformer.norm_out.linear, transformer.proj_out):
        last.weight.zero_()
        last.bias.zero_()


_NEIGHBOURS = ((0, 0), (0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns from a token to where each head first looks."""


@torch.no_grad()
def begin_looking_at_the_photo(transformer: FluxTransformer2DModel) -> None:
    """Let each head begin with the tokens of the photo at about the same place, as a convolution would.

    Which token of one picture belongs to which of the other is otherwise most of what there is to be learnt.
    Queries and keys get a constant part that rotary places turn: they agree where the places do, and where
    they are a chosen step apart if one of the two is turned back by that step.
    """
    pair_of_axis = [sum(PLACE_WIDTHS[:axis]) for axis in range(3)]
    turns = [(axis, pair, 10000 ** (-2 * pair / PLACE_WIDTHS[axis])) for axis in (1, 2) for pair in (0, 1)]
    turns.append((0, 0, 1.0))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        attention = block.attn
        for head, step in enumerate(_NEIGHBOURS):
            steps = (1, *step)  # along the first axis from the noisy picture, 0, to the photo, 1
            for axis, pair, speed in turns:
                place = pair_of_axis[axis] + 2 * pair
                row = head * HEAD_WIDTH + place
                angle = steps[axis] * speed
                strength = 3.0 if pair == 0 else 1.5
                attention.to_q.bias[row] = strength
                attention.to_q.bias[row + 1] = 0
                attention.to_k.bias[row] = strength * math.cos(angle)
                attention.to_k.bias[row + 1] = -strength * math.sin(angle)
                for norm in (attention.norm_q, attention.norm_k):
                    norm.weight[place : place + 2] = 2


def corrupted(targets: Tensor, generator: torch.Generator) -> Corrupted:
    """Latents on the line to noise; what is asked for is the way along it."""
    evenly = torch.rand(len(targets), generator=generator)
    times = TIME_SHIFT * evenly / (1 + (TIME_SHIFT - 1) * evenly)
    noise = torch.randn(targets.shape, generator=generator)
    share = times.reshape(-1, 1, 1, 1)
    return Corrupted((1 - share) * targets + share * noise, times, noise - targets, torch.ones(len(targets)))


def velocity(
    transformer: FluxTransformer2DModel, noisy: Tensor, times: Tensor, photos: Tensor, text: Tensor
) -> Tensor:
    """What the transformer says.

    Args:
        noisy: (n, c, h, w).
        times: s, (n,).
        photos: unscaled latents (n, c, h, w).
        text: rows of `flow_text_tables`.
    """
    height, width = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
    pictures = torch.cat([noisy, photos / RAW_DEVIATION])
    tokens = functional.pixel_unshuffle(pictures, PATCH).flatten(2).mT
    places = torch.cartesian_prod(torch.arange(2), torch.arange(height), torch.arange(width))
    answer = transformer(
        hidden_states=torch.cat(tokens.chunk(2), 1),
        encoder_hidden_states=text[:, 1:],
        pooled_projections=text[:, 0],
        timestep=times,
        img_ids=places.to(noisy.device, torch.float32),
        txt_ids=torch.zeros(text.shape[1] - 1, 3, device=noisy.device),
    ).sample
    answer = answer[:, : height * width].mT.unflatten(2, (height, width))
    return functional.pixel_shuffle(answer, PATCH)


@torch.no_grad()
def flow_text_tables(recipe: UnetRecipe, work: Path, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """As `training.unet.text_tables`; of a text first CLIP's vector of it, then T5's of its words."""
    clip_tokenizer, clip = load_text(work)
    t5_tokenizer, t5 = load_words(work)

    def embedded(texts: list[str]) -> Tensor:
        whole = clip(tokenize(clip_tokenizer, texts)).pooler_output
        words = t5(tokenize_words(t5_tokenizer, texts)).last_hidden_state
        return torch.cat([whole.unsqueeze(1), words], 1)

    return {edit: embedded(texts) for edit, texts in texts_by_edit(recipe, seed).items()}, embedded([""])[0]


def train_flow(job: Job, snapshot: Callable[[], None]) -> None:
    """Train from scratch; see `train_denoiser` for what it leaves."""
    torch.manual_seed(job.seed)
    device = job.worker.device
    transformer = new_transformer().to(device)
    if device.type == "cpu":
        # Written-out attention: for so few tokens the fused kernel's backward takes longer on a CPU.
        transformer.set_attention_backend("_native_math")
    variants = read_latents(job.work, job.worker.count, FLOW.latents)
    samples = Samples(FLOW, variants, *flow_text_tables(FLOW, job.work, job.seed))

    def predict(*inputs: Tensor) -> Tensor:
        return velocity(transformer, *inputs)

    train_denoiser(
        FLOW.name,
        job,
        transformer,
        predict,
        samples.draw,
        corrupted,
        peak_learning_rate=PEAK_LEARNING_RATE,
        snapshot=snapshot,
        windows=WINDOWS,
    )


def load_transformer(work: Path) -> FluxTransformer2DModel:
    """The transformer with the averaged weights that `train_flow` left, frozen."""
    transformer = new_transformer()
    load_average(transformer, FLOW.name, work)
    return transformer
