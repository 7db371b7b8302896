"""Pieces of Markdown that the generated blocks consist of."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def source(file: str) -> str:
    """A results file by its path from the root, as the blocks name it below a table."""
    return f"`{file}`"
