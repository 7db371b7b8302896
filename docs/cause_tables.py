"""The tables of docs/causes.md that are made from the rules themselves."""

import math
from collections.abc import Callable

from docs.markdown import table
from timecycle.evaluation.comparison.attributes import LENGTHS, SIZES, SPEEDS
from timecycle.evaluation.davis.causes import CAUSES, FAIL_FRAMES, FAILS, GAP


def rules() -> str:
    """When an object fails, and the rule of each cause in the order in which they are tried."""
    rows = [[str(number), f"**{name}**", rule] for number, (name, rule) in enumerate(CAUSES.items(), 1)]
    return (
        f"An object fails in a stretch: {FAIL_FRAMES} or more frames with J&F below {FAILS:g}, with at most {GAP} "
        "better frames in a row between them. Of a small object J alone counts, since its F is near 1 wherever the "
        f"result is within the tolerance.\n\n{table(['', 'cause', 'rule, over the frames of a stretch'], rows)}"
    )


def attributes() -> str:
    """The classes of objects and their limits."""
    of: list[tuple[str, str, dict[str, float], Callable[[float], str]]] = [
        ("size", "mean area where it is annotated, as a share of the frame", SIZES, "{:.0%}".format),
        (
            "speed",
            "median motion to the next frame, in per cent of the square root of its area",
            SPEEDS,
            "{:g} %".format,
        ),
        ("length", "frames of the sequence", LENGTHS, "{:g}".format),
    ]
    rows = []
    for name, what, limits, written in of:
        classes, least = [], None
        for one, limit in limits.items():
            classes.append(f"{one}: {f'from {least} on' if math.isinf(limit) else f'below {written(limit)}'}")
            least = written(limit)
        rows.append([name, what, "; ".join(classes)])
    return table(["attribute", "of an object", "classes, the first that fits"], rows)
