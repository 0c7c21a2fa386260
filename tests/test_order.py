"""Which pictures make up which batch."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from trainer.order import batches


def dealt(sizes: Sequence[object], count: int, *, batch_size: int, seed: int) -> list[list[int]]:
    """The first batches."""
    return list(islice(batches(sizes, batch_size=batch_size, seed=seed), count))


SIZES = st.lists(st.sampled_from([(64, 64), (64, 96), (96, 64), (128, 32)]), min_size=1, max_size=40)


@given(SIZES, st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32))
def test_batches_are_full_and_of_one_size(sizes: list[tuple[int, int]], count: int, batch_size: int, seed: int) -> None:
    found = dealt(sizes, count, batch_size=batch_size, seed=seed)
    assert [len(batch) for batch in found] == [batch_size] * count
    assert all(len({sizes[number] for number in batch}) == 1 for batch in found)
    assert found == dealt(sizes, count, batch_size=batch_size, seed=seed)


@given(SIZES, st.integers(1, 4), st.integers(0, 2**32))
def test_every_picture_comes_equally_often(sizes: list[tuple[int, int]], batch_size: int, seed: int) -> None:
    """To one batch of its size: whatever sizes there are, none is learned more than another."""
    count = 30 * len(sizes)
    found = Counter(number for batch in dealt(sizes, count, batch_size=batch_size, seed=seed) for number in batch)
    for number, size in enumerate(sizes):
        members = sizes.count(size)
        assert abs(found[number] - 30 * batch_size) <= 1 + len(set(sizes)) * batch_size / members


@given(st.integers(2, 30), st.integers(0, 2**32))
def test_none_comes_again_before_all_have_come(pictures: int, seed: int) -> None:
    found = [batch[0] for batch in dealt([(8, 8)] * pictures, 2 * pictures, batch_size=1, seed=seed)]
    assert sorted(found[:pictures]) == sorted(found[pictures:]) == list(range(pictures))


def test_another_seed_is_another_order() -> None:
    assert dealt([0] * 20, 20, batch_size=1, seed=0) != dealt([0] * 20, 20, batch_size=1, seed=1)
