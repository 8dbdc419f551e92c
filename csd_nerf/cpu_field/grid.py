"""A hash grid (Instant-NGP, 2201.05989) for a block of samples that stays in the cache.

Arrays of a block are (rows, B), one column a sample, of which the first `count` are in use. One level is done
at a time, so that its table stays in the cache too.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.cpu_field.compiled import compiled

_PRIME_Y = np.uint32(2654435761)
_PRIME_Z = np.uint32(805459861)


@compiled
def into_unit_cube(positions, first, count, contract, corner, extent, unit, inside):
    """Where a block's samples are in their grid.

    Args:
        positions: (N, 3), in the scene.
        first: of the block's samples, among the N.
        count: of samples in the block.
        contract: whether all of space is contracted into a cube of side 4 (mip-NeRF 360, 2111.12077, by the
            largest coordinate); else the scene ends at its box.
        corner: (3,) of the box.
        extent: (3,) of the box.
        unit: (3, B), written: 0..1, and 0 where outside.
        inside: (N,), written: 1 where the grid reaches, else 0.
    """
    for sample in range(count):
        x, y, z = positions[first + sample, 0], positions[first + sample, 1], positions[first + sample, 2]
        if contract:
            largest = max(abs(x), abs(y), abs(z))
            shrink = np.float32(1)
            if largest >= 1:
                shrink = (np.float32(2) - np.float32(1) / largest) / largest
            x, y, z = (
                (x * shrink + np.float32(2)) * np.float32(0.25),
                (y * shrink + np.float32(2)) * np.float32(0.25),
                (z * shrink + np.float32(2)) * np.float32(0.25),
            )
        else:
            x, y, z = (x - corner[0]) / extent[0], (y - corner[1]) / extent[1], (z - corner[2]) / extent[2]
        there = x > 0 and x < 1 and y > 0 and y < 1 and z > 0 and z < 1
        reach = np.float32(1) if there else np.float32(0)
        inside[first + sample] = reach
        unit[0, sample], unit[1, sample], unit[2, sample] = x * reach, y * reach, z * reach


@compiled
def _cell(unit, sample, cells):
    """The cell that a sample is in.

    Returns:
        x of its lower and upper corners; what the hash makes of the four pairs of y and z; how far the sample
        is along x; and the four weights of y and z.
    """
    x, y, z = unit[0, sample] * cells, unit[1, sample] * cells, unit[2, sample] * cells
    low_x, low_y, low_z = np.int32(x), np.int32(y), np.int32(z)  # 0 or more: so this is the floor
    right, up, far = x - np.float32(low_x), y - np.float32(low_y), z - np.float32(low_z)
    down, near = np.float32(1) - up, np.float32(1) - far
    x_0 = np.uint32(low_x)
    x_1 = np.uint32(x_0 + np.uint32(1))
    y_0 = np.uint32(np.uint32(low_y) * _PRIME_Y)
    y_1 = np.uint32(y_0 + _PRIME_Y)
    z_0 = np.uint32(np.uint32(low_z) * _PRIME_Z)
    z_1 = np.uint32(z_0 + _PRIME_Z)
    hashes = (np.uint32(y_0 ^ z_0), np.uint32(y_1 ^ z_0), np.uint32(y_0 ^ z_1), np.uint32(y_1 ^ z_1))
    return x_0, x_1, hashes, right, (down * near, up * near, down * far, up * far)


@compiled
def look_up(unit, count, table, cells, features):
    """Features of a block's samples.

    Args:
        unit: (3, B), 0..1.
        count: of samples in the block.
        table: (levels, T, 2), T a power of two.
        cells: (levels,), along each side.
        features: (2 levels, B), written.
    """
    mask = np.uint32(table.shape[1] - 1)
    for level in range(len(cells)):
        values = table[level]
        for sample in range(count):
            x_0, x_1, hashes, right, weights = _cell(unit, sample, cells[level])
            left = np.float32(1) - right
            first, second = np.float32(0), np.float32(0)
            for edge in range(4):
                lower = np.uint32((x_0 ^ hashes[edge]) & mask)
                upper = np.uint32((x_1 ^ hashes[edge]) & mask)
                first += weights[edge] * (left * values[lower, 0] + right * values[upper, 0])
                second += weights[edge] * (left * values[lower, 1] + right * values[upper, 1])
            features[2 * level, sample] = first
            features[2 * level + 1, sample] = second


@compiled
def look_up_backward(unit, count, gradient, cells, table_gradient):
    """Add what a block's samples ask of the table.

    Args:
        unit: (3, B), 0..1.
        count: of samples in the block.
        gradient: (2 levels, B), with respect to the features.
        cells: (levels,).
        table_gradient: (levels, T, 2), added to.
    """
    mask = np.uint32(table_gradient.shape[1] - 1)
    for level in range(len(cells)):
        asked = table_gradient[level]
        for sample in range(count):
            first, second = gradient[2 * level, sample], gradient[2 * level + 1, sample]
            if first == 0 and second == 0:  # most of a proposal's, once it bounds the field's weights
                continue
            x_0, x_1, hashes, right, weights = _cell(unit, sample, cells[level])
            left = np.float32(1) - right
            for edge in range(4):
                lower = np.uint32((x_0 ^ hashes[edge]) & mask)
                upper = np.uint32((x_1 ^ hashes[edge]) & mask)
                share, other = weights[edge] * left, weights[edge] * right
                asked[lower, 0] += share * first
                asked[lower, 1] += share * second
                asked[upper, 0] += other * first
                asked[upper, 1] += other * second
