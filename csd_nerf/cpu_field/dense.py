"""Layers of small networks for a block of samples that stays in the cache.

Arrays are (rows, B), one column a sample, of which the first `count` are in use. Two rows of the result and
four of the input are taken at a time: six loads for eight multiply-adds, which is near what a core can do.
"""

from __future__ import annotations

import numpy as np

from csd_nerf.cpu_field.compiled import compiled


@compiled
def multiply_add(weight, values, result, count):
    """`result += weight @ values`.

    Args:
        weight: (O, I).
        values: (I, B).
        result: (O, B), added to.
        count: of columns in use.
    """
    rows, terms = weight.shape
    paired_rows, fours = rows // 2 * 2, terms // 4 * 4
    for row in range(0, paired_rows, 2):
        upper, lower = result[row], result[row + 1]
        for term in range(0, fours, 4):
            a_0, a_1, a_2, a_3 = (
                weight[row, term],
                weight[row, term + 1],
                weight[row, term + 2],
                weight[row, term + 3],
            )
            b_0, b_1 = weight[row + 1, term], weight[row + 1, term + 1]
            b_2, b_3 = weight[row + 1, term + 2], weight[row + 1, term + 3]
            x_0, x_1, x_2, x_3 = values[term], values[term + 1], values[term + 2], values[term + 3]
            for column in range(count):
                upper[column] += a_0 * x_0[column] + a_1 * x_1[column] + a_2 * x_2[column] + a_3 * x_3[column]
                lower[column] += b_0 * x_0[column] + b_1 * x_1[column] + b_2 * x_2[column] + b_3 * x_3[column]
        for term in range(fours, terms):
            a_0, b_0, x_0 = weight[row, term], weight[row + 1, term], values[term]
            for column in range(count):
                upper[column] += a_0 * x_0[column]
                lower[column] += b_0 * x_0[column]
    for row in range(paired_rows, rows):
        single = result[row]
        for term in range(0, fours, 4):
            a_0, a_1, a_2, a_3 = (
                weight[row, term],
                weight[row, term + 1],
                weight[row, term + 2],
                weight[row, term + 3],
            )
            x_0, x_1, x_2, x_3 = values[term], values[term + 1], values[term + 2], values[term + 3]
            for column in range(count):
                single[column] += (
                    a_0 * x_0[column] + a_1 * x_1[column] + a_2 * x_2[column] + a_3 * x_3[column]
                )
        for term in range(fours, terms):
            a_0, x_0 = weight[row, term], values[term]
            for column in range(count):
                single[column] += a_0 * x_0[column]


@compiled
def spread(bias, result, count):
    """`result = bias`, (O,) to (O, B)."""
    for row in range(len(bias)):
        value = bias[row]
        for column in range(count):
            result[row, column] = value


@compiled
def cut_negative(values, count):
    """ReLU of (I, B), in its place."""
    for row in range(values.shape[0]):
        for column in range(count):
            values[row, column] = max(values[row, column], np.float32(0))


@compiled
def cut_where_negative(gradient, values, count):
    """The gradient (I, B) in front of a ReLU from that behind it, in its place; `values` are behind it."""
    for row in range(values.shape[0]):
        for column in range(count):
            if values[row, column] <= 0:
                gradient[row, column] = np.float32(0)


@compiled
def add_outer(gradient, values, weight_gradient, count):
    """`weight_gradient += gradient @ values.T`: (O, B) and (I, B) to (O, I)."""
    rows, terms = weight_gradient.shape
    fours = terms // 4 * 4
    for row in range(rows):
        asked = gradient[row]
        for term in range(0, fours, 4):
            x_0, x_1, x_2, x_3 = values[term], values[term + 1], values[term + 2], values[term + 3]
            s_0, s_1, s_2, s_3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for column in range(count):
                share = asked[column]
                s_0 += share * x_0[column]
                s_1 += share * x_1[column]
                s_2 += share * x_2[column]
                s_3 += share * x_3[column]
            weight_gradient[row, term] += s_0
            weight_gradient[row, term + 1] += s_1
            weight_gradient[row, term + 2] += s_2
            weight_gradient[row, term + 3] += s_3
        for term in range(fours, terms):
            x_0 = values[term]
            s_0 = np.float32(0)
            for column in range(count):
                s_0 += asked[column] * x_0[column]
            weight_gradient[row, term] += s_0


@compiled
def add_sums(gradient, bias_gradient, count):
    """`bias_gradient += gradient.sum(1)`: (O, B) to (O,)."""
    for row in range(len(bias_gradient)):
        total = np.float32(0)
        for column in range(count):
            total += gradient[row, column]
        bias_gradient[row] += total
