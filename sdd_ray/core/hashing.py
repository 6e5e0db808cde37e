"""Hashes of 64-bit counters, from which draws come that depend on no order of work.

Shapes: any.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Odd step of SplitMix64; a counter times it visits every state once."""


def mix(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64-bit hashes: the output function of SplitMix64, a permutation of all states.

    Source:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
        constants of S. Vigna's splitmix64.c.

    Example:
        >>> mix(np.array([1234567], np.uint64) + GOLDEN).tolist()
        [6457827717110365317]
    """
    mixed = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def unit_interval(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the upper 53 bits of hashes as numbers in [0, 1).

    Example:
        >>> unit_interval(np.array([0, 2**63], np.uint64)).tolist()
        [0.0, 0.5]
    """
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
