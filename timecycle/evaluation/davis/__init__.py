"""DAVIS: sequences, masks, their scores J and F. Scoring masks (`scores`, `metrics`, `tables`) needs no torch."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`evaluate_davis`, imported when it is used, with torch."""
    if name != "evaluate_davis":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from timecycle.evaluation.davis.evaluate import evaluate_davis

    return evaluate_davis
