"""Names of the parts of named features, also those of before 0.1.0. Does not import torch."""

PARTS = ("network", "color", "gradients")
RENAMED_PARTS = {"colour": "color"}
"""Names from before 0.1.0 -> current names."""


def parts_of(features: str) -> tuple[str, ...] | None:
    """Split features such as "network+color" into parts, with current names; None if a part is unknown."""
    parts = tuple(RENAMED_PARTS.get(part, part) for part in features.split("+"))
    return parts if set(parts) <= set(PARTS) else None


def current_features(description: str) -> str:
    """A description `part+part [identity]` with current names of the parts."""
    named, blank, rest = description.partition(" ")
    return "+".join(parts_of(named) or (named,)) + blank + rest
