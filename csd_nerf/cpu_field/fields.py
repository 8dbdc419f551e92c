"""The kernels as functions of tensors that carry a gradient to the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from csd_nerf.cpu_field import field_kernels as kernels
from csd_nerf.threads import beside_each_other, runs

_Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Space:
    """What of a scene a hash grid covers.

    Attributes:
        contract: all of space, contracted by its largest coordinate; else the box alone.
        box: (2, 3), lower and upper corner.
    """

    contract: bool
    box: Float[Tensor, "2 3"]

    def arrays(self) -> tuple[bool, np.ndarray, np.ndarray]:
        """As the kernels want it."""
        lower, upper = self.box.float()
        return self.contract, lower.numpy(), (upper - lower).numpy()


def density(
    positions: Float[Tensor, "n 3"],
    space: Space,
    cells: Float[Tensor, " levels"],
    table: Float[Tensor, "entries 2"],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Raw density, and 1 where the grid reaches and 0 elsewhere, of a density network.

    Args:
        positions: in the scene.
        space: that the grid covers.
        cells: of each level, along each side.
        table: of all levels, one after the other.
        weights: of its two layers, as `nn.Linear` has them.
        biases: likewise.
    """
    return _Density.apply(positions, space, cells, table, *weights, *biases)


def field(
    positions: Float[Tensor, "n 3"],
    of_rays: Float[Tensor, "r c"],
    space: Space,
    cells: Float[Tensor, " levels"],
    table: Float[Tensor, "entries 2"],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Raw density, 1 where the grid reaches and 0 elsewhere, and raw colours, of nerfacto's field.

    Args:
        positions: in the scene, N / R of every ray, one ray after the other.
        of_rays: what the first layer of the colour network makes of a ray's direction, its bias included.
        space: that the grid covers.
        cells: of each level, along each side.
        table: of all levels, one after the other.
        weights: of the two layers of the base and the three of the colour network, as `nn.Linear` has them;
            of the third the columns of what comes from the base.
        biases: likewise, without that of the third.
    """
    return _Field.apply(positions, of_rays, space, cells, table, *weights, *biases)


class _Density(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, positions: Tensor, space: Space, cells: Tensor, table: Tensor, *network: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, biases = network[:2], network[2:]
        rows = (3, *(weight.shape[1] for weight in weights))
        raw, inside = positions.new_empty(2, len(positions))
        grid = _levels(table, cells)

        def work(samples: tuple[int, int], kept: _Arrays) -> None:
            kernels.density(
                samples, _array(positions), space.arrays(), grid, _arrays(weights), _arrays(biases), kept,
                raw.numpy(), inside.numpy(),
            )  # fmt: skip

        _forward(ctx, work, len(positions), rows, cells, table, weights, biases)
        ctx.mark_non_differentiable(inside)
        return raw, inside

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raw_gradient = _array(gradients[0])
        saved = _Saved(ctx, layers=2, biases=2)

        def work(samples: tuple[int, int], asked: list[np.ndarray]) -> None:
            kernels.density_backward(
                samples, saved.cells, saved.transposed, saved.kept, raw_gradient,
                asked[0], tuple(asked[1:3]), tuple(asked[3:]),
            )  # fmt: skip

        return None, None, None, *_backward(work, len(raw_gradient), saved.shapes, saved.table_shape)


class _Field(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        positions: Tensor,
        of_rays: Tensor,
        space: Space,
        cells: Tensor,
        table: Tensor,
        *network: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, biases = network[:5], network[5:]
        width = of_rays.shape[1]
        rows = (3, weights[0].shape[1], weights[1].shape[1], weights[1].shape[0], width, width)
        raw, inside = positions.new_empty(2, len(positions))
        colours = torch.empty_like(positions)
        grid = _levels(table, cells)

        def work(samples: tuple[int, int], kept: _Arrays) -> None:
            kernels.field(
                samples, _array(positions), _array(of_rays), space.arrays(), grid, _arrays(weights),
                _arrays(biases), kept, raw.numpy(), inside.numpy(), colours.numpy(),
            )  # fmt: skip

        _forward(ctx, work, len(positions), rows, cells, table, weights, biases)
        ctx.rays_shape = of_rays.shape
        ctx.mark_non_differentiable(inside)
        return raw, inside, colours

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raw_gradient, colour_gradient = _array(gradients[0]), _array(gradients[2])
        saved = _Saved(ctx, layers=5, biases=4)

        def work(samples: tuple[int, int], asked: list[np.ndarray]) -> None:
            kernels.field_backward(
                samples, saved.cells, saved.transposed, saved.kept, raw_gradient, colour_gradient,
                asked[-1], asked[0], tuple(asked[1:6]), tuple(asked[6:10]),
            )  # fmt: skip

        shapes = [*saved.shapes, ctx.rays_shape]
        *of_weights, of_rays = _backward(work, len(raw_gradient), shapes, saved.table_shape)
        return None, of_rays, None, None, *of_weights


class _Saved:
    """What a forward pass has left to the backward pass."""

    def __init__(self, ctx: Any, *, layers: int, biases: int) -> None:
        cells, *rest = ctx.saved_tensors  # asked for once: under checkpointing it can be read only once
        weights, kept = rest[:layers], rest[layers:]
        self.cells = cells.numpy()
        self.transposed = tuple(np.ascontiguousarray(weight.detach().numpy().T) for weight in weights)
        self.kept = _arrays(kept)
        self.table_shape = ctx.table_shape
        self.shapes = [_level_shape(ctx.table_shape, cells), *(w.shape for w in weights), *ctx.bias_shapes]


def _forward(
    ctx: Any,
    work: Callable[[tuple[int, int], _Arrays], None],
    samples: int,
    rows: tuple[int, ...],
    cells: Tensor,
    table: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> None:
    """Run `work`; what it computes of every sample is kept only where a gradient will be asked for."""
    parts = runs(samples, kernels.BLOCK)
    if any(ctx.needs_input_grad):
        blocks = -(-samples // kernels.BLOCK)
        kept = [torch.empty(blocks, height, kernels.BLOCK) for height in rows]
        arrays = _arrays(kept)
        beside_each_other(lambda lane, part: work(part, arrays), parts)
        ctx.save_for_backward(cells, *weights, *kept)
        ctx.table_shape = table.shape
        ctx.bias_shapes = [bias.shape for bias in biases]
    else:
        scratch = [tuple(np.empty((1, height, kernels.BLOCK), np.float32) for height in rows) for _ in parts]
        beside_each_other(lambda lane, part: work(part, scratch[lane]), parts)


def _backward(
    work: Callable[[tuple[int, int], list[np.ndarray]], None],
    samples: int,
    shapes: Sequence[tuple[int, ...]],
    table_shape: tuple[int, ...],
) -> list[Tensor]:
    """The gradients that `work` adds up, each lane its own sum; the first is the table's.

    So they do not depend on which thread comes first.
    """
    parts = runs(samples, kernels.BLOCK)
    sums = [torch.zeros(len(parts), *shape) for shape in shapes]
    beside_each_other(lambda lane, part: work(part, [each[lane].numpy() for each in sums]), parts)
    totals = [each.sum(0) if len(parts) > 1 else each[0] for each in sums]
    return [totals[0].view(table_shape), *totals[1:]]


def _levels(table: Tensor, cells: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return _array(table).reshape(_level_shape(table.shape, cells)), _array(cells)


def _level_shape(table_shape: tuple[int, ...], cells: Tensor) -> tuple[int, int, int]:
    return len(cells), table_shape[0] // len(cells), table_shape[1]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _arrays(tensors: Sequence[Tensor]) -> _Arrays:
    return tuple(_array(tensor) for tensor in tensors)
