"""Every photo under every edit, encoded once: the training of a denoiser never runs the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from csd_nerf.scenes.operators import OPERATORS, TINTS
from csd_nerf.seeds import step_seed
from training.parallel import Worker
from training.photos import Photo, resized
from training.progress import save_whole

NAME = "latents"
"""Of the stage, and of its files."""

SHORT_SIDES = (96, 160)
"""Pixels: around the sizes the prior is used at, so that whole pictures of 96 and 128 px look familiar."""

EDITED_VARIANTS = 3
PAINTED_VARIANTS = 8
TARGETS: tuple[str, ...] = (*OPERATORS, *TINTS)
PAINTED = "painted"


@dataclass(frozen=True)
class Variant:
    """One photo at one size, mirrored or not, and what the edits make of it: unscaled latents in fp16."""

    source: Tensor
    """(c, h, w)."""
    targets: dict[str, Tensor]
    """By name of the operator, of the tint's hue, or `PAINTED`; each (c, h, w)."""


def write_latents(
    worker: Worker, photos: list[Photo], vae: AutoencoderKL, work: Path, seed: int, name: str = NAME
) -> None:
    """Encode this worker's share of the photos to `work/NAME-RANK-of-COUNT.pt`."""
    file = _file(name, work, worker.rank, worker.count)
    if not file.exists():

        @torch.no_grad()
        def encode(pictures: Tensor) -> Tensor:
            with torch.autocast(worker.device.type, torch.bfloat16):
                mean = vae.encode(pictures.to(worker.device) * 2 - 1).latent_dist.mode()
            return mean.half().cpu()

        encoded: list[tuple[Tensor, dict[str, Tensor]]] = []
        for index in range(worker.rank, len(photos), worker.count):
            generator = torch.Generator().manual_seed(step_seed(seed, index))
            photo = photos[index]
            for side in _strata(EDITED_VARIANTS, generator):
                rgb = _prepared(photo.rgb, side, mirrored := _coin(generator))
                edits = [OPERATORS[name].apply if name in OPERATORS else TINTS[name] for name in TARGETS]
                latents = encode(torch.stack([edit(rgb) for edit in edits]))
                targets = dict(zip(TARGETS, latents.unbind(), strict=True))
                encoded.append((targets["identity"], targets))
            if photo.painted is None:
                continue
            for side in _strata(PAINTED_VARIANTS, generator):
                mirrored = _coin(generator)
                pair = [_prepared(picture, side, mirrored) for picture in (photo.rgb, photo.painted)]
                source, painted = encode(torch.stack(pair)).unbind()
                encoded.append((source, {PAINTED: painted}))
            if worker.leads and index % 20 == 0:
                print(f"latents of photo {index} of {len(photos)}", flush=True)
        save_whole(encoded, file)
    worker.wait()


def read_latents(work: Path, count: int, name: str = NAME) -> list[Variant]:
    """What the `count` workers of `write_latents` wrote."""
    files = [_file(name, work, rank, count) for rank in range(count)]
    return [Variant(*fields) for file in files for fields in torch.load(file, weights_only=True)]


def _file(name: str, work: Path, rank: int, count: int) -> Path:
    return work / f"{name}-{rank}-of-{count}.pt"


def _prepared(picture: Tensor, short_side: int, mirrored: bool) -> Tensor:
    small = resized(picture, short_side)
    small = small[:, : small.shape[1] // 4 * 4, : small.shape[2] // 4 * 4]
    return small.flip(-1) if mirrored else small


def _strata(count: int, generator: torch.Generator) -> list[int]:
    """`count` short sides spread over `SHORT_SIDES`, one at random in each of equal intervals."""
    low, high = SHORT_SIDES
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return [round(low + (high - low) * place) for place in places.tolist()]


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.randint(2, (), generator=generator))
