"""What Pix2Video and FateZero do about flicker, on an InstructPix2Pix of ours: baselines for clips.

Both were published for text-to-image models. Here the prior is shown the source frame besides, as everywhere,
and both begin at the source's own noise, by inversion of DDIM with the empty prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.distillation import Guidance, ddim_step
from csd_nerf.distillation.sampling import ddim_timesteps
from csd_nerf.priors.instruct_pix2pix import InstructPix2Pix

START = 980
"""Of the schedule's 1000 timesteps: where sampling begins."""
GUIDED_SHARE = 0.5
"""Of the steps, in which Pix2Video pulls a frame to the one before it."""
REPLACED_SHARE = 0.5
"""Of the steps, in which FateZero takes the self-attention of the source."""


def pix2video(
    prior: InstructPix2Pix,
    frames: Float[Tensor, "f 3 height width"],
    prompt: str,
    *,
    guidance: Guidance,
    steps: int,
    pull: float = 1.0,
) -> Float[Tensor, "f 3 height width"]:
    """Each frame attends to the first and to the one before it (Ceylan et al., 2303.12688).

    In the first half of the steps the gradient of `|x0_i - x0_(i-1)|^2 / 2`, through the U-Net, pulls what it
    thinks is clean to that of the frame before it. Published frame after frame; as all that a frame needs of
    others is of the same noise level, all frames go together.

    Args:
        frames: source, RGB in 0..1.
        prompt: the instruction.
        guidance: of text and picture.
        steps: of DDIM.
        pull: length of the pull, in units of the gradient.
    """
    source, condition = prior.encode_source(frames)
    before = torch.arange(len(frames)).sub(1).clamp(min=0)

    def other_frames(tokens: Tensor) -> Tensor:
        """Keys or values (branches * f, n, d) of the first frame and the one before."""
        by_frame = tokens.unflatten(0, (-1, len(frames)))
        return torch.cat([by_frame[:, :1].expand_as(by_frame), by_frame[:, before]], dim=2).flatten(0, 1)

    times = ddim_timesteps(START, steps)
    latents, _ = _inverted(prior, source, condition, times)
    with _self_attention(prior, keys_and_values=other_frames):
        for number, (t, following) in enumerate(zip(times, [*times[1:], 0], strict=True)):
            with torch.set_grad_enabled(number < GUIDED_SHARE * steps):
                variable = latents.detach().requires_grad_()
                noise = _guided(prior, variable, condition, t, prompt, guidance)
                alpha, sigma = prior.schedule.alphas[t].item(), prior.schedule.sigmas[t].item()
                clean = (variable - sigma * noise) / alpha
                if clean.requires_grad:
                    loss = (clean - clean[before].detach()).square().sum() / 2
                    latents = latents - pull * alpha * torch.autograd.grad(loss, variable)[0]
            latents = ddim_step(prior.schedule, noise.detach(), latents, t, following)
    return prior.decode(latents.detach())


@torch.no_grad()
def fatezero(
    prior: InstructPix2Pix,
    frames: Float[Tensor, "f 3 height width"],
    prompt: str,
    *,
    guidance: Guidance,
    steps: int,
) -> Float[Tensor, "f 3 height width"]:
    """In the first half of the steps self-attention is that of the source as it was inverted (Qi et al.,
    2303.09535). Its masks from single words have no counterpart in an instruction, and are left out.

    Args:
        frames, prompt, guidance, steps: as for `pix2video`.
    """
    source, condition = prior.encode_source(frames)
    times = ddim_timesteps(START, steps)
    latents, kept = _inverted(prior, source, condition, times)
    for number, (t, following) in enumerate(zip(times, [*times[1:], 0], strict=True)):
        maps = kept[t] if number < REPLACED_SHARE * steps else None

        def of_the_source(layer: int, attention: Tensor, maps: dict[int, Tensor] | None = maps) -> Tensor:
            return attention if maps is None else maps[layer].repeat(len(attention) // len(frames), 1, 1, 1)

        with _self_attention(prior, attention=of_the_source):
            noise = _guided(prior, latents, condition, t, prompt, guidance)
        latents = ddim_step(prior.schedule, noise, latents, t, following)
    return prior.decode(latents)


@torch.no_grad()
def _inverted(
    prior: InstructPix2Pix, source: Tensor, condition: Tensor, times: list[int]
) -> tuple[Tensor, dict[int, dict[int, Tensor]]]:
    """The noise that DDIM makes the source of, and the self-attention on the way, by timestep and layer."""
    latents, kept = source, dict[int, dict[int, Tensor]]()
    words = prior.embed([""]).expand(len(source), -1, -1)
    upwards = [0, *times[::-1]]
    for t, following in zip(upwards, upwards[1:], strict=False):
        kept[following] = {}

        def keep(layer: int, attention: Tensor, maps: dict[int, Tensor] = kept[following]) -> Tensor:
            maps[layer] = attention
            return attention

        with _self_attention(prior, attention=keep):
            # At the level that it goes to, so that each step down has the maps of its own.
            noise = _asked(prior, latents, condition, following, words)
        latents = ddim_step(prior.schedule, noise, latents, t, following)
    return latents, kept


def _guided(
    prior: InstructPix2Pix, latents: Tensor, condition: Tensor, t: int, prompt: str, guidance: Guidance
) -> Tensor:
    count = len(latents)
    words = prior.embed(["", "", prompt]).repeat_interleave(count, dim=0)
    shown = torch.cat([torch.zeros_like(condition), condition, condition])
    return guidance.combine(*_asked(prior, latents.repeat(3, 1, 1, 1), shown, t, words).chunk(3))


def _asked(prior: InstructPix2Pix, latents: Tensor, condition: Tensor, t: int, words: Tensor) -> Tensor:
    """Noise, of all rows at once, with a gradient where those are enabled."""
    rows = torch.cat([latents, condition], dim=1).to(prior.dtype)
    return prior.unet(rows, t, encoder_hidden_states=words.to(prior.dtype)).sample.float()


@contextmanager
def _self_attention(
    prior: InstructPix2Pix,
    *,
    keys_and_values: Callable[[Tensor], Tensor] = lambda tokens: tokens,
    attention: Callable[[int, Tensor], Tensor] = lambda layer, attention: attention,
) -> Iterator[None]:
    """Let the U-Net's self-attention see other tokens, or be another, for a while."""
    usual = dict(prior.unet.attn_processors)
    chosen = dict(usual)
    for layer, name in enumerate(name for name in usual if ".attn1." in name):
        chosen[name] = _Processor(layer, keys_and_values, attention)
    prior.unet.set_attn_processor(chosen)
    try:
        yield
    finally:
        prior.unet.set_attn_processor(usual)


class _Processor:
    """Self-attention, written out, with `_self_attention`'s changes."""

    def __init__(
        self,
        layer: int,
        keys_and_values: Callable[[Tensor], Tensor],
        attention: Callable[[int, Tensor], Tensor],
    ) -> None:
        self.layer, self.keys_and_values, self.attention = layer, keys_and_values, attention

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        seen = self.keys_and_values(hidden_states)
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
        )
        weights = self.attention(self.layer, (attn.scale * query @ key.mT).softmax(-1))
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))
