"""All pairs instead of the full product of parameters."""

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few tuples of a value of each parameter, in which any two values of any two parameters occur together.

    The same tuples for the same choices: each begins with a pair that is missing yet, and every other value is the one
    that adds most missing pairs.
    """
    places = range(len(choices))
    missing = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(places, 2)
        for a, b in itertools.product(range(len(choices[i])), range(len(choices[j])))
    }
    found = []

    def pairs(one: tuple[int, int], others: dict[int, int]) -> list[tuple]:
        return [(min(one, other), max(one, other)) for other in others.items()]

    while missing:
        row = dict(min(missing))
        for i in places:
            if i not in row:
                values = range(len(choices[i]))
                row[i] = max(values, key=lambda a: (len(missing.intersection(pairs((i, a), row))), -a))
        missing.difference_update(itertools.combinations(sorted(row.items()), 2))
        found.append(tuple(choices[i][row[i]] for i in places))
    return found
