"""Numbers that fill the unit cube evenly however few are drawn: a scrambled Sobol sequence for each sample."""

from functools import cache

import numpy as np
from torch.quasirandom import SobolEngine

BITS = 16  # of a coordinate, enough for 65,536 points


def sobol_point(sha256: str, number: int, dimensions: int) -> np.ndarray:
    """A point of a sample's scrambled Sobol sequence, float64 (dimensions,) in [0, 1).

    Of the first 2^m points each dimension has one in every interval [k, k + 1) / 2^m.

    Args:
        sha256: the sample's content hash, which determines the scrambling.
        number: of the point, from 0.

    Reference: the points are torch's, of Joe and Kuo 2008; random linear scrambling with a digital shift, Matousek 1998, On the
    L2-discrepancy for anchored boxes. The scrambling is drawn by numpy, whose bit streams do not depend on its version.
    """
    random = np.random.default_rng([int(sha256[:16], 16)])
    draws = random.integers(0, 2, (dimensions, BITS, BITS + 1), dtype=np.uint8)
    scrambling = np.tril(draws[..., 1:], -1) + np.eye(BITS, dtype=np.uint8)
    bits = ((scrambling * _bits(number, dimensions)[:, None]).sum(-1) + draws[..., 0]) % 2
    point: np.ndarray = bits @ 0.5 ** np.arange(1, BITS + 1)
    return point


@cache
def _bits(number: int, dimensions: int) -> np.ndarray:
    """The bits of a point's coordinates before scrambling, the highest first: uint8 (dimensions, BITS)."""
    point = SobolEngine(dimensions).fast_forward(number).draw(1).double().numpy()[0]
    integers = (point * 2**BITS).astype(np.int64)
    bits: np.ndarray = ((integers[:, None] >> np.arange(BITS - 1, -1, -1)) & 1).astype(np.uint8)
    return bits
