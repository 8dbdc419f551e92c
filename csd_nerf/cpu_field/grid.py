"""A hash grid (Instant-NGP, 2201.05989) for a block of samples that stays in the cache.

Arrays of a block are (rows, B) with one column a sample, of which the first `count` are in use: what is innermost
is what a processor does many of at a time. First come the entries and weights of all samples of a level, which
is arithmetic; then the look-ups, which wait for memory.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.cpu_field.compiled import compiled

_PRIME_Y = np.uint32(2654435761)
_PRIME_Z = np.uint32(805459861)


@compiled
def into_unit_cube(positions, first, count, contract, corner, extent, unit, inside):  # type: ignore[no-untyped-def]
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
def _corners(unit, count, cells, size, entries, weights):  # type: ignore[no-untyped-def]
    """Entries (8, B) in a level's table of the corners of each sample's cell, and trilinear weights (8, B)."""
    mask = np.uint32(size - 1)
    for sample in range(count):
        x, y, z = unit[0, sample] * cells, unit[1, sample] * cells, unit[2, sample] * cells
        low_x, low_y, low_z = np.int32(x), np.int32(y), np.int32(z)  # 0 or more: so this is the floor
        right, up, far = x - np.float32(low_x), y - np.float32(low_y), z - np.float32(low_z)
        left, down, near = np.float32(1) - right, np.float32(1) - up, np.float32(1) - far
        x_0 = np.uint32(low_x)
        x_1 = np.uint32(low_x + np.int32(1))
        y_0 = np.uint32(np.uint32(low_y) * _PRIME_Y)
        y_1 = np.uint32(y_0 + _PRIME_Y)
        z_0 = np.uint32(np.uint32(low_z) * _PRIME_Z)
        z_1 = np.uint32(z_0 + _PRIME_Z)
        entries[0, sample] = (x_0 ^ y_0 ^ z_0) & mask
        entries[1, sample] = (x_1 ^ y_0 ^ z_0) & mask
        entries[2, sample] = (x_0 ^ y_1 ^ z_0) & mask
        entries[3, sample] = (x_1 ^ y_1 ^ z_0) & mask
        entries[4, sample] = (x_0 ^ y_0 ^ z_1) & mask
        entries[5, sample] = (x_1 ^ y_0 ^ z_1) & mask
        entries[6, sample] = (x_0 ^ y_1 ^ z_1) & mask
        entries[7, sample] = (x_1 ^ y_1 ^ z_1) & mask
        weights[0, sample] = left * down * near
        weights[1, sample] = right * down * near
        weights[2, sample] = left * up * near
        weights[3, sample] = right * up * near
        weights[4, sample] = left * down * far
        weights[5, sample] = right * down * far
        weights[6, sample] = left * up * far
        weights[7, sample] = right * up * far


@compiled
def look_up(unit, count, table, cells, features, entries, weights):  # type: ignore[no-untyped-def]
    """Features of a block's samples.

    Args:
        unit: (3, B), 0..1.
        count: of samples in the block.
        table: (levels, T, 2), T a power of two.
        cells: (levels,), along each side.
        features: (2 levels, B), written.
        entries, weights: (8, B), for its own use.
    """
    for level in range(len(cells)):
        _corners(unit, count, cells[level], table.shape[1], entries, weights)
        values = table[level]
        for sample in range(count):
            first = np.float32(0)
            second = np.float32(0)
            for corner in range(8):
                entry = entries[corner, sample]
                weight = weights[corner, sample]
                first += weight * values[entry, 0]
                second += weight * values[entry, 1]
            features[2 * level, sample] = first
            features[2 * level + 1, sample] = second


@compiled
def look_up_backward(unit, count, gradient, cells, table_gradient, entries, weights):  # type: ignore[no-untyped-def]
    """Add what a block's samples ask of the table.

    Args:
        unit: (3, B), 0..1.
        count: of samples in the block.
        gradient: (2 levels, B), with respect to the features.
        cells: (levels,).
        table_gradient: (levels, T, 2), added to.
        entries, weights: (8, B), for its own use.
    """
    for level in range(len(cells)):
        _corners(unit, count, cells[level], table_gradient.shape[1], entries, weights)
        asked = table_gradient[level]
        for sample in range(count):
            first = gradient[2 * level, sample]
            second = gradient[2 * level + 1, sample]
            for corner in range(8):
                entry = entries[corner, sample]
                weight = weights[corner, sample]
                asked[entry, 0] += weight * first
                asked[entry, 1] += weight * second
