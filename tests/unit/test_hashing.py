"""The hash against published outputs, its laws, and the numbers that draws depend on."""

import numpy as np

from sdd_ray.core import comparisons, hashing


def test_hash_is_splitmix64():
    """The first outputs of splitmix64.c for state 1234567, as listed on rosettacode.org."""
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * hashing.GOLDEN
    assert hashing.mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_hashes_are_a_permutation_and_leave_their_input_alone():
    states = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(hashing.mix(states))) == len(states)
    assert states.tolist() == list(range(100_000))


def test_neighbours_differ_in_half_of_their_bits():
    hashes = hashing.mix(np.arange(2000, dtype=np.uint64) * hashing.GOLDEN)
    flipped = np.unpackbits((hashes[1:] ^ hashes[:-1]).view(np.uint8)).mean()
    assert abs(flipped - 0.5) < 0.01


def test_numbers_lie_in_the_unit_interval_and_evenly():
    ends = np.array([0, 2**11 - 1, 2**11, 2**64 - 1], np.uint64)
    assert hashing.unit_interval(ends).tolist() == [0.0, 0.0, 2.0**-53, 1 - 2.0**-53]
    numbers = hashing.unit_interval(hashing.mix(np.arange(50_000, dtype=np.uint64)))
    shares = np.histogram(numbers, 10, (0, 1))[0] / len(numbers)
    assert np.abs(shares - 0.1).max() < 0.01


def test_comparisons_drawn_by_a_seed_stay_what_they_were():
    drawn = comparisons._uniform(np.arange(5), np.arange(5) + 7, 2**32 - 1)
    assert drawn.tolist() == [
        0.1563907861588124,
        0.29132588746863464,
        0.3098418661975505,
        0.2729283917129779,
        0.7350974987771214,
    ]
