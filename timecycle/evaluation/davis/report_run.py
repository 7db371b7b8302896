"""What a page says about a run: facts at its top, settings and times at its end."""

import re
from typing import Any

from timecycle.data.sequences import Sequence
from timecycle.errors import printable
from timecycle.evaluation.davis.results import FEATURES, FRAME_STRIDE, stage_seconds
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.progress import duration
from timecycle.viewing.pages import command_lines

STAGES = {"read": "read frames", "encode": "features", "propagate": "propagation", "write": "masks and overlays"}
"""Names of the stages, which overlap, for people."""


def facts(run: EvaluationRun, sequences: list[Sequence]) -> list[tuple[str, str]]:
    """What is stated at the top of the page."""
    frames = sum(len(sequence.frames) for sequence in sequences)
    features = str(run.options.get(FEATURES) or "not named").partition(" ")[0]
    if len(features) == 64 and not features.strip("0123456789abcdef"):  # of evaluate_davis: a hash of the callable
        features = f"callable {short_hashes(features)}"
    found = [
        ("protocol", protocol_name(run)),
        ("features", printable(features).replace("+", " + ")),
        ("frames", f"{frames} in {len(sequences)} sequence{'s' if len(sequences) > 1 else ''}"),
        ("size", image_size(run)),
    ]
    if run.options.get(FRAME_STRIDE, 1) != 1:
        found.append(("frame stride", str(run.options[FRAME_STRIDE])))
    seconds = stage_seconds(run.content).get("total")
    return found if seconds is None else [*found, ("time", f"{duration(seconds)} for the masks")]


def protocol_name(run: EvaluationRun) -> str:
    """The name of a run's protocol."""
    return printable(str(run.options.get("name", "not named")))


def image_size(run: EvaluationRun) -> str:
    """To what size a run resizes frames, in words."""
    resize = run.options.get("resize")
    return "as the frames are" if resize == "native" else printable(f"{run.options.get('side')} pixels, {resize}")


def settings(run: EvaluationRun) -> dict[str, Any]:
    """The command, the options, the machine, and seconds by stage."""
    content, stages = run.content, stage_seconds(run.content)
    frames = sum(entry.get("frames", 0) for entry in content["sequences"].values()) or 1
    machine = {**content.get("versions", {}), "device": content.get("device")}
    for place, megabytes in (content.get("peak_memory_mb") or {}).items():
        machine[f"peak memory, {place}"] = f"{megabytes:.0f} MB"
    return {
        "command": command_lines([str(word) for word in content.get("command") or []]),
        "options": [(name, short_hashes(text)) for name, text in _texts(run.options)],
        "machine": [(name, value) for name, value in _texts(machine) if value != "none"],
        "stages": [
            (name, stages[stage], 1000 * stages[stage] / frames) for stage, name in STAGES.items() if stage in stages
        ],
        "total": stages.get("total"),
    }


def short_hashes(text: str) -> str:
    """A text with 12 digits of each hash."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", text)


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; those of a nested dict as `outer.inner`."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += [(f"{name}.{inner}", text) for inner, text in _texts(value)]
        else:
            found.append((printable(str(name)), _text(value)))
    return found


def _text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_text, value)) if isinstance(value, list) else printable(str(value))
