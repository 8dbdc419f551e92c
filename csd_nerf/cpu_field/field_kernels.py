"""Density and colour of nerfacto's fields, and the gradient of their weights, block by block of samples.

A block is as many samples as stay in a core's cache with all that is computed of them. Every function works
on a run of blocks, so that several can go on beside each other.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.cpu_field.compiled import compiled
from csd_nerf.cpu_field.dense import (
    add_outer,
    add_sums,
    cut_negative,
    cut_where_negative,
    multiply_add,
    spread,
)
from csd_nerf.cpu_field.grid import into_unit_cube, look_up, look_up_backward

BLOCK = 192
"""Samples of a block: 16 rays of 12."""


@compiled
def density(samples, positions, space, grid, weights, biases, kept, raw, inside):
    """Raw density of a density network (`HashMLPDensityField`).

    Args:
        samples: (first, last), the run of them to work on; `first` begins a block.
        positions: (N, 3), in the scene.
        space: whether it is contracted; corner (3,) and extent (3,) of its box.
        grid: table (levels, T, 2); cells (levels,) along each side.
        weights: of two layers: (H, 2 levels), (1, H).
        biases: (H,), (1,).
        kept: positions (K, 3, B), features (K, 2 levels, B) and hidden layer (K, H, B), written; a block's
            are at its number, or all at 0 where K is 1.
        raw: (N,), written.
        inside: (N,), written: 1 where the grid reaches, else 0.
    """
    first, last = samples
    result = np.empty((1, BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        count = min(BLOCK, last - start)
        slot = min(start // BLOCK, kept[0].shape[0] - 1)
        unit, features, hidden = kept[0][slot], kept[1][slot], kept[2][slot]
        _base(
            positions, start, count, space, grid, weights, biases, unit, inside, features, hidden, result,
        )  # fmt: skip
        for sample in range(count):
            raw[start + sample] = result[0, sample]


@compiled
def density_backward(
    samples, cells, transposed, kept, raw_gradient, table_gradient, weight_gradients, bias_gradients
):
    """What a gradient of the raw density asks of a density network.

    Args:
        samples: (first, last), as forward.
        cells: (levels,).
        transposed: the weights, (2 levels, H), (H, 1).
        kept: as forward has written it, a block at its number.
        raw_gradient: (N,).
        table_gradient: (levels, T, 2), added to, as are those of the weights and the biases.
        weight_gradients: shapes of the weights.
        bias_gradients: shapes of the biases.
    """
    first, last = samples
    result_gradient = np.empty((1, BLOCK), np.float32)
    hidden_gradient = np.empty((transposed[1].shape[0], BLOCK), np.float32)
    feature_gradient = np.empty((transposed[0].shape[0], BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        count = min(BLOCK, last - start)
        slot = start // BLOCK
        for sample in range(count):
            result_gradient[0, sample] = raw_gradient[start + sample]
        _base_backward(
            count, cells, transposed, kept[0][slot], kept[1][slot], kept[2][slot], result_gradient,
            hidden_gradient, feature_gradient, table_gradient, weight_gradients, bias_gradients,
        )  # fmt: skip


@compiled
def field(samples, positions, of_rays, space, grid, weights, biases, kept, raw, inside, colours):
    """Raw density and colour of `NerfactoField`; raw is in front of the last function, which torch does.

    Args:
        samples: (first, last), the run of them to work on; `first` begins a block.
        positions: (N, 3), in the scene.
        of_rays: (R, C), what the first layer of the colour network makes of a ray's direction, its bias
            included. Sample i is on ray i // (N // R).
        space, grid: as of `density`.
        weights: of two layers of the base, (H, 2 levels), (1 + G, H), and of three of the colour network,
            (C, G), (C, C), (3, C), the first for what comes from the base alone.
        biases: (H,), (1 + G,), of the colour network's layers but the first, (C,), (3,).
        kept: positions (K, 3, B), features (K, 2 levels, B), layers (K, H, B), (K, 1 + G, B), (K, C, B) and
            (K, C, B), written; a block's are at its number, or all at 0 where K is 1.
        raw: (N,), written.
        inside: (N,), written: 1 where the grid reaches, else 0.
        colours: (N, 3), in front of their sigmoid, written.
    """
    first, last = samples
    per_ray = positions.shape[0] // of_rays.shape[0]
    shown = np.empty((3, BLOCK), np.float32)
    for start in range(first, last, BLOCK):
        count = min(BLOCK, last - start)
        slot = min(start // BLOCK, kept[0].shape[0] - 1)
        unit, features, hidden, base = kept[0][slot], kept[1][slot], kept[2][slot], kept[3][slot]
        second, third = kept[4][slot], kept[5][slot]
        _base(
            positions, start, count, space, grid, weights, biases, unit, inside, features, hidden, base,
        )  # fmt: skip
        for sample in range(count):
            raw[start + sample] = base[0, sample]
        column = 0
        while column < count:
            ray = (start + column) // per_ray
            end = min(count, (ray + 1) * per_ray - start)
            for row in range(second.shape[0]):
                second[row, column:end] = of_rays[ray, row]
            column = end
        multiply_add(weights[2], base[1:], second, count)
        cut_negative(second, count)
        spread(biases[2], third, count)
        multiply_add(weights[3], second, third, count)
        cut_negative(third, count)
        spread(biases[3], shown, count)
        multiply_add(weights[4], third, shown, count)
        for sample in range(count):
            for row in range(3):
                colours[start + sample, row] = shown[row, sample]


@compiled
def field_backward(
    samples, cells, transposed, kept, raw_gradient, colour_gradient,
    ray_gradient, table_gradient, weight_gradients, bias_gradients
):  # fmt: skip
    """What gradients of raw density and colours ask of a field.

    Args:
        samples: (first, last), as forward.
        cells: (levels,).
        transposed: the weights, each transposed.
        kept: as forward has written it, a block at its number.
        raw_gradient: (N,).
        colour_gradient: (N, 3).
        ray_gradient: (R, C), of what is the rays', added to, as are the others.
        table_gradient: (levels, T, 2).
        weight_gradients: shapes of the weights.
        bias_gradients: shapes of the biases.
    """
    first, last = samples
    per_ray = len(raw_gradient) // ray_gradient.shape[0]
    width = ray_gradient.shape[1]
    hidden_gradient = np.empty((transposed[1].shape[0], BLOCK), np.float32)
    feature_gradient = np.empty((transposed[0].shape[0], BLOCK), np.float32)
    base_gradient = np.empty((transposed[1].shape[1], BLOCK), np.float32)
    second_gradient = np.empty((width, BLOCK), np.float32)
    third_gradient = np.empty((width, BLOCK), np.float32)
    shown_gradient = np.empty((3, BLOCK), np.float32)
    zeros = np.zeros(max(width, transposed[2].shape[0]), np.float32)
    for start in range(first, last, BLOCK):
        count = min(BLOCK, last - start)
        slot = start // BLOCK
        base, second, third = kept[3][slot], kept[4][slot], kept[5][slot]
        for sample in range(count):
            for row in range(3):
                shown_gradient[row, sample] = colour_gradient[start + sample, row]
        add_outer(shown_gradient, third, weight_gradients[4], count)
        add_sums(shown_gradient, bias_gradients[3], count)
        spread(zeros[:width], third_gradient, count)
        multiply_add(transposed[4], shown_gradient, third_gradient, count)
        cut_where_negative(third_gradient, third, count)
        add_outer(third_gradient, second, weight_gradients[3], count)
        add_sums(third_gradient, bias_gradients[2], count)
        spread(zeros[:width], second_gradient, count)
        multiply_add(transposed[3], third_gradient, second_gradient, count)
        cut_where_negative(second_gradient, second, count)
        add_outer(second_gradient, base[1:], weight_gradients[2], count)
        column = 0
        while column < count:
            ray = (start + column) // per_ray
            end = min(count, (ray + 1) * per_ray - start)
            for row in range(width):
                total = np.float32(0)
                for sample in range(column, end):
                    total += second_gradient[row, sample]
                ray_gradient[ray, row] += total
            column = end
        for sample in range(count):
            base_gradient[0, sample] = raw_gradient[start + sample]
        spread(zeros[: transposed[2].shape[0]], base_gradient[1:], count)
        multiply_add(transposed[2], second_gradient, base_gradient[1:], count)
        _base_backward(
            count, cells, transposed, kept[0][slot], kept[1][slot], kept[2][slot], base_gradient,
            hidden_gradient, feature_gradient, table_gradient, weight_gradients, bias_gradients,
        )  # fmt: skip


@compiled
def _base(
    positions, start, count, space, grid, weights, biases, unit, inside, features, hidden, result
):  # fmt: skip
    """The hash grid and the two layers behind it, of one block."""
    into_unit_cube(positions, start, count, space[0], space[1], space[2], unit, inside)
    look_up(unit, count, grid[0], grid[1], features)
    spread(biases[0], hidden, count)
    multiply_add(weights[0], features, hidden, count)
    cut_negative(hidden, count)
    spread(biases[1], result, count)
    multiply_add(weights[1], hidden, result, count)


@compiled
def _base_backward(
    count, cells, transposed, unit, features, hidden, result_gradient, hidden_gradient, feature_gradient,
    table_gradient, weight_gradients, bias_gradients
):  # fmt: skip
    add_outer(result_gradient, hidden, weight_gradients[1], count)
    add_sums(result_gradient, bias_gradients[1], count)
    hidden_gradient[:] = np.float32(0)
    multiply_add(transposed[1], result_gradient, hidden_gradient, count)
    cut_where_negative(hidden_gradient, hidden, count)
    add_outer(hidden_gradient, features, weight_gradients[0], count)
    add_sums(hidden_gradient, bias_gradients[0], count)
    feature_gradient[:] = np.float32(0)
    multiply_add(transposed[0], hidden_gradient, feature_gradient, count)
    look_up_backward(unit, count, feature_gradient, cells, table_gradient)
