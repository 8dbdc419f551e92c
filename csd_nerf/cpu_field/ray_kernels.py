"""What nerfacto does along each ray: weights, the next round of samples, and its two regularisers.

Kernels of (R, S) arrays, S samples a ray. Every function works on a run of rays.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.cpu_field.compiled import compiled

_EPSILON = np.float32(1e-7)


@compiled
def positions(rays, origins, directions, starts, ends, result):
    """Middles of samples in the scene.

    Args:
        rays: (first, last), the run of them to work on.
        origins, directions: (R, 3).
        starts, ends: (R, S), distances along the rays.
        result: (R, S, 3), written.
    """
    for ray in range(rays[0], rays[1]):
        for sample in range(starts.shape[1]):
            middle = (starts[ray, sample] + ends[ray, sample]) / np.float32(2)
            for axis in range(3):
                result[ray, sample, axis] = origins[ray, axis] + directions[ray, axis] * middle


@compiled
def piecewise_distances(rays, edges, near, far, result):
    """Nerfstudio's piecewise spacing undone: evenly near the camera, evenly in disparity beyond.

    Args:
        rays: (first, last).
        edges: (R, S), 0..1 from near to far.
        near, far: (R,), distances in that spacing, 0..1.
        result: (R, S), distances, written.
    """
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    for ray in range(rays[0], rays[1]):
        for edge in range(edges.shape[1]):
            along = edges[ray, edge] * far[ray] + (one - edges[ray, edge]) * near[ray]
            result[ray, edge] = two * along if along < half else one / (two - two * along)


@compiled
def weights(rays, densities, lengths, result):
    """Share of each sample in a ray's colour (NeRF, 2003.08934, equation 3).

    Args:
        rays: (first, last), the run of them to work on.
        densities: (R, S).
        lengths: (R, S), of the samples.
        result: (R, S), written; 0 where a density is not a number, as nerfstudio has it.
    """
    for ray in range(rays[0], rays[1]):
        left = np.float32(1)  # of the light
        for sample in range(densities.shape[1]):
            passes = np.exp(-densities[ray, sample] * lengths[ray, sample])
            share = left * (np.float32(1) - passes)
            left *= passes
            result[ray, sample] = share if share == share else np.float32(0)


@compiled
def weights_backward(rays, densities, lengths, shares, gradient, result):
    """The gradient (R, S) of the densities from that of the weights, `shares`."""
    for ray in range(rays[0], rays[1]):
        passed = np.float32(0)
        behind = np.float32(0)
        for sample in range(densities.shape[1]):
            behind += gradient[ray, sample] * shares[ray, sample]
        for sample in range(densities.shape[1]):
            length = lengths[ray, sample]
            passed += densities[ray, sample] * length
            asked = gradient[ray, sample]
            behind -= asked * shares[ray, sample]
            # More density here takes this sample's share nearer to all the light that is left, and leaves
            # less to those behind.
            result[ray, sample] = length * (asked * np.exp(-passed) - behind)


@compiled
def resample(rays, edges, shares, power, padding, at, result):
    """Edges of the next samples, more of them where the weights are large (NeRF, section 5.2).

    Args:
        rays: (first, last).
        edges: (R, S + 1), of the samples that have the weights.
        shares: (R, S), the weights.
        power: of the weights; below 1 they tell less.
        padding: added to each.
        at: (R, T + 1), quantiles, 0..1, rising.
        result: (R, T + 1), written.
    """
    samples = shares.shape[1]
    cumulative = np.empty(samples + 1, np.float32)
    for ray in range(rays[0], rays[1]):
        total = np.float32(0)
        cumulative[0] = 0
        for sample in range(samples):
            share = shares[ray, sample]
            total += (share if power == 1 else share**power) + padding
            cumulative[sample + 1] = total
        for sample in range(samples):
            cumulative[sample + 1] = min(cumulative[sample + 1] / total, np.float32(1))
        above = 0
        for quantile in range(at.shape[1]):
            wanted = at[ray, quantile]
            while above <= samples and cumulative[above] <= wanted:
                above += 1
            lower, upper = max(above - 1, 0), min(above, samples)
            along = np.float32(0)
            if cumulative[upper] > cumulative[lower]:
                along = (wanted - cumulative[lower]) / (cumulative[upper] - cumulative[lower])
            along = min(max(along, np.float32(0)), np.float32(1))
            near, far = edges[ray, lower], edges[ray, upper]
            result[ray, quantile] = near + along * (far - near)


@compiled
def interlevel(rays, edges, shares, outer_edges, outer_shares, result):
    """How far the weights of a proposal fall short of bounding the field's (mip-NeRF 360, equation 13).

    Args:
        rays: (first, last).
        edges: (R, S + 1), of the field's samples.
        shares: (R, S), the field's weights, which get no gradient.
        outer_edges: (R, P + 1), of the proposal's samples.
        outer_shares: (R, P), its weights.
        result: (R, P), added to: the gradient, of the sum over rays and samples.

    Returns:
        That sum, over these rays.
    """
    samples, proposals = shares.shape[1], outer_shares.shape[1]
    total = 0.0
    for ray in range(rays[0], rays[1]):
        first, last = 0, 0
        for sample in range(samples):
            # The proposal's samples that this one overlaps.
            while first + 1 < proposals and outer_edges[ray, first + 1] <= edges[ray, sample]:
                first += 1
            while last < proposals - 1 and outer_edges[ray, last + 1] <= edges[ray, sample + 1]:
                last += 1
            bound = np.float32(0)
            for proposal in range(first, last + 1):
                bound += outer_shares[ray, proposal]
            share = shares[ray, sample]
            short = max(share - bound, np.float32(0))
            total += short * short / (share + _EPSILON)
            for proposal in range(first, last + 1):
                result[ray, proposal] -= np.float32(2) * short / (share + _EPSILON)
    return total


@compiled
def distortion(rays, edges, shares, result):
    """How spread out the weights of a ray are (mip-NeRF 360, equation 15).

    Args:
        rays: (first, last).
        edges: (R, S + 1), rising.
        shares: (R, S), the weights.
        result: (R, S), written: the gradient, of the sum over rays.

    Returns:
        That sum, over these rays.
    """
    samples = shares.shape[1]
    total = 0.0
    for ray in range(rays[0], rays[1]):
        weight_behind, moment_behind = np.float32(0), np.float32(0)
        for sample in range(samples):
            middle = (edges[ray, sample] + edges[ray, sample + 1]) / np.float32(2)
            weight_behind += shares[ray, sample]
            moment_behind += shares[ray, sample] * middle
        weight_before, moment_before = np.float32(0), np.float32(0)
        for sample in range(samples):
            share = shares[ray, sample]
            low, high = edges[ray, sample], edges[ray, sample + 1]
            middle = (low + high) / np.float32(2)
            weight_behind -= share
            moment_behind -= share * middle
            away = (middle * weight_before - moment_before) + (moment_behind - middle * weight_behind)
            weight_before += share
            moment_before += share * middle
            own = share * (high - low) / np.float32(3)
            total += share * (away + own)
            result[ray, sample] = np.float32(2) * (away + own)
    return total
