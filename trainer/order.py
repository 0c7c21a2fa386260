"""Which pictures make up which batch: all of one size, every picture equally often, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

Size = TypeVar("Size")


def batches(sizes: Sequence[Size], *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of picture numbers without end, `batch_size` each, of equal size within a batch.

    Batches of a size come as often as it has pictures, spread evenly; within a size, every picture comes once before
    any comes again. A size with fewer pictures than a batch has places repeats them, with other noise.
    """
    groups: dict[Size, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    order = random.Random(seed)
    decks = [_Deck(members, order) for members in groups.values()]
    debts = [0.0] * len(decks)
    while True:
        for number, deck in enumerate(decks):
            debts[number] += len(deck.members) / len(sizes)
        most = max(debts)
        chosen = order.choice([number for number, debt in enumerate(debts) if debt > most - 1e-9])
        debts[chosen] -= 1
        yield [decks[chosen].draw() for _ in range(batch_size)]


class _Deck:
    """Deals its members in random order, again and again."""

    def __init__(self, members: list[int], order: random.Random) -> None:
        self.members, self._order = members, order
        self._left: list[int] = []

    def draw(self) -> int:
        if not self._left:
            self._left = self._order.sample(self.members, len(self.members))
        return self._left.pop()
