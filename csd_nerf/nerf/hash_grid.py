"""Hash grids: where their entries are, and nerfstudio's torch grid several times as fast on a CPU.

Of `encode` the function, the parameters and the checkpoints are those of
`nerfstudio.field_components.encodings.HashEncoding`; only the order of work differs. One level at a time, so
that its corners stay in the cache; hashed in 32 bits, axis by axis instead of corner by corner; each feature
gathered and scattered as one flat column; and a backward pass that stops at the table.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.mlp import MLPWithHashEncoding
from torch import Tensor, nn

_PRIMES = (1, 2654435761 - 2**32, 805459861)
"""Of Instant-NGP's hash (Mueller et al. 2022, equation 4), as signed 32-bit numbers."""
_TCNN_ALIGNMENT = 16
"""tiny-cuda-nn pads the widths of what goes into its networks, and comes out, to multiples of this."""


def mark_hash_grids(module: nn.Module) -> None:
    """Note at the parameters below `module` where they hold entries of hash grids, for `grid_entries`."""
    for part in module.modules():
        if isinstance(part, HashEncoding):
            parameter: Any = part.hash_table if part.tcnn_encoding is None else part.tcnn_encoding.params
            parameter.hash_grid_from = 0
        elif isinstance(part, MLPWithHashEncoding) and hasattr(part.model, "params"):
            part.model.params.hash_grid_from = _tcnn_network_size(part)


def grid_entries(parameter: nn.Parameter) -> Tensor | None:
    """What of a parameter are entries of a hash grid, sharing its memory; None where there are none.

    Args:
        parameter: of a module that `mark_hash_grids` has seen.
    """
    first = getattr(parameter, "hash_grid_from", None)
    return None if first is None else parameter.detach()[first:]


def _tcnn_network_size(part: MLPWithHashEncoding) -> int:
    """Weights of the layers, which come before the entries (`NetworkWithInputEncoding::set_params_impl`)."""
    inputs, outputs = (
        width + -width % _TCNN_ALIGNMENT
        for width in (part.num_levels * part.features_per_level, cast(int, part.out_dim))
    )
    hidden = part.num_layers - 1
    return part.layer_width * (inputs + (hidden - 1) * part.layer_width + outputs)


def use_fast_hash_grids(module: nn.Module) -> None:
    """Let every torch hash grid below `module` use `encode`.

    Only where nothing needs a gradient with respect to positions: no pose is optimised, no normal asked for.
    """
    for part in module.modules():
        if isinstance(part, HashEncoding) and part.tcnn_encoding is None:
            part.pytorch_fwd = partial(encode, part)  # type: ignore[method-assign]


def encode(grid: HashEncoding, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n features"]:
    """What `grid.pytorch_fwd(positions)` returns; its gradient reaches the table alone.

    Args:
        grid: in its torch implementation.
        positions: 0..1.
    """
    features = _Encode.apply(grid.hash_table, positions.reshape(-1, 3), grid.scalings, grid.hash_table_size)
    return features.reshape(*positions.shape[:-1], -1)


class _Encode(torch.autograd.Function):
    """(L * T, F) table and (N, 3) positions to (N, L * F) features: level by level, features innermost."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, positions: Tensor, scalings: Tensor, size: int) -> Tensor:
        levels = len(scalings)
        columns = table.view(levels, size, -1).transpose(1, 2).contiguous()
        axes = positions.t().contiguous()
        features = axes.new_empty(len(positions), levels, columns.shape[1])
        kept = []
        for level, cells in enumerate(scalings.tolist()):
            entries, weights = _corners(axes * cells, size)
            kept += [entries, weights]
            for feature, column in enumerate(columns[level]):
                values = column.index_select(0, entries.view(-1)).view_as(weights)
                features[:, level, feature] = values.mul_(weights).sum(0)
        ctx.save_for_backward(*kept)
        ctx.table_shape = columns.shape
        return features.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        levels, count, _ = ctx.table_shape
        (gradient,) = gradients
        wanted = gradient.float().view(-1, levels, count).permute(1, 2, 0).contiguous()
        columns = wanted.new_zeros(ctx.table_shape)
        kept = ctx.saved_tensors  # asked for once: under checkpointing it can be read only once
        for level, (entries, weights) in enumerate(zip(kept[::2], kept[1::2], strict=True)):
            for column, share in zip(columns[level], wanted[level], strict=True):
                column.index_add_(0, entries.view(-1), (weights * share).view(-1))
        return columns.transpose(1, 2).reshape(-1, count), None, None, None


def _corners(scaled: Float[Tensor, "3 n"], size: int) -> tuple[Int[Tensor, "8 n"], Float[Tensor, "8 n"]]:
    """Entries, in one level's table, of the corners of each position's cell, and their trilinear weights."""
    below = scaled.floor()
    upper = scaled - below
    hashed = [axis * prime for axis, prime in zip(below.to(torch.int32), _PRIMES, strict=True)]
    x, y, z = (torch.stack([low, low + prime]) for low, prime in zip(hashed, _PRIMES, strict=True))
    entries = (x[:, None, None] ^ (y[:, None] ^ z[None])).bitwise_and_(size - 1)
    along_x, along_y, along_z = torch.stack([1 - upper, upper], 1)
    weights = along_x[:, None, None] * (along_y[:, None] * along_z[None])
    return entries.view(8, -1), weights.view(8, -1)
