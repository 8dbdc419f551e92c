"""Pictures of any size through an autoencoder, tile by tile.

Tiles overlap by a third and blend with weights that add up to one, so that neither their borders nor the
autoencoder's different opinions of two neighbours show. Memory is that of one tile, beside picture and
latents; of several ranks that share a prior, each does one at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf import ranks
from csd_nerf.editors.windows import Grid
from csd_nerf.priors import Prior

LEAST_TILE = 256
"""Pixels, for priors whose windows are smaller. Autoencoders normalise over all they see: a small tile of
nothing but sky comes out in another blue than its neighbour."""

TileDone = Callable[[int], None]
"""Called after each tile with how many are done."""


def encode_tiles(
    prior: Prior,
    picture: Float[Tensor, "3 height width"],
    tile: int,
    *,
    wrap: bool = False,
    done: TileDone = lambda number: None,
) -> tuple[Float[Tensor, "1 c h w"], Float[Tensor, "1 k h w"]]:
    """Scaled latents and `Prior.condition` of a picture, on the prior's device.

    Args:
        prior: with the autoencoder.
        picture: RGB in 0..1, sides multiples of `prior.vae_factor`; on any device.
        tile: side of the tiles in pixels, a multiple of `prior.vae_factor`. A picture that fits in one is
            encoded whole, unless it wraps.
        wrap: whether the right edge continues at the left one.
        done: told of every tile.
    """
    factor = prior.vae_factor
    height, width = (side // factor for side in picture.shape[1:])
    grid = Grid.over(height, width, tile // factor, wrap=wrap)
    results: list[Tensor] = []
    pixels = grid.enlarged(factor)
    number = 0
    for places in ranks.groups(grid.places):
        parts = torch.cat([pixels.part(place, picture[None]) for place in places])
        encoded = prior.encode_source(parts.to(prior.device))
        if not results:
            results = [latents.new_zeros(1, latents.shape[1], height, width) for latents in encoded]
        for tiles, result in zip(encoded, results, strict=True):
            for place, latents in zip(places, tiles, strict=True):
                grid.add(place, latents, result)
        number += len(places)
        done(number)
    return results[0], results[1]


def decode_tiles(
    prior: Prior,
    latents: Float[Tensor, "1 c h w"],
    tile: int,
    *,
    wrap: bool = False,
    done: TileDone = lambda number: None,
) -> Float[Tensor, "3 height width"]:
    """The picture of scaled latents, RGB in 0..1, on the CPU.

    Args:
        prior, tile, wrap, done: as for `encode_tiles`.
        latents: scaled.
    """
    factor = prior.vae_factor
    height, width = latents.shape[2:]
    grid = Grid.over(height, width, tile // factor, wrap=wrap)
    pixels = grid.enlarged(factor)
    picture = torch.zeros(1, 3, height * factor, width * factor)
    number = 0
    for places in ranks.groups(grid.places):
        tiles = prior.decode(torch.cat([grid.part(place, latents) for place in places]))
        for place, tile_of_it in zip(places, tiles.cpu(), strict=True):
            pixels.add(place, tile_of_it, picture)
        number += len(places)
        done(number)
    return picture[0].clamp_(0, 1)  # weights add up to one but for rounding
