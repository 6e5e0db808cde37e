"""Splits share no person, have the sizes asked for, and depend on the names and the seed alone."""

import random
from collections import Counter

import pytest

from sdd_ray.core.splits import PARTS, split_identities

NAMES = [f"person {n}" for n in range(500)]


def test_every_identity_has_one_part_of_the_size_asked_for():
    parts = split_identities(NAMES, 0.2, 0.1, seed=3)
    assert sorted(parts) == sorted(NAMES)
    assert Counter(parts.values()) == {"holdout": 100, "validation": 40, "train": 360}
    assert set(parts.values()) == set(PARTS)


def test_split_depends_neither_on_order_nor_on_repeats():
    wanted = split_identities(NAMES, 0.2, 0.1, seed=3)
    shuffled = NAMES * 3
    random.Random(0).shuffle(shuffled)
    assert split_identities(iter(shuffled), 0.2, 0.1, seed=3) == wanted


def test_seed_draws_another_split():
    first, second = (split_identities(NAMES, 0.2, 0.1, seed) for seed in (0, 1))
    held_out = [{n for n in NAMES if parts[n] == "holdout"} for parts in (first, second)]
    # By chance 20 of 100 are in both.
    assert len(held_out[0] & held_out[1]) < 40


def test_split_is_the_same_on_every_machine():
    # By hand: `printf 0/a | sha256sum` for each letter sorts them as gfcbedah; 2 of 8 are held out
    # and 2 of the other 6 validate.
    parts = split_identities("abcdefgh", 0.25, 0.3, seed=0)
    digits = {name: part[0] for name, part in parts.items()}
    assert "".join(digits[name] for name in "abcdefgh") == "tvvtthht"


def test_larger_holdout_holds_the_smaller_one():
    small = split_identities(NAMES, 0.1, 0.1, seed=0)
    large = split_identities(NAMES, 0.3, 0.1, seed=0)
    assert all(large[n] == "holdout" for n in NAMES if small[n] == "holdout")


def test_no_holdout():
    assert "holdout" not in split_identities(NAMES, 0.0, 0.1, seed=0).values()


def test_asked_for_parts_are_never_empty():
    parts = split_identities(["a", "b", "c"], 0.01, 0.01, seed=0)
    assert sorted(parts.values()) == ["holdout", "train", "validation"]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b"], ["a", "a", "b", "b"]])
def test_too_few_identities(names):
    with pytest.raises(ValueError, match=f"expected more identities.*got {len(set(names))}"):
        split_identities(names, 0.2, 0.1, seed=0)
