"""What a warp does with a patch of products, stage by stage, counted from the machine code of csrc/cuda.

The stages are the functions of csrc/cuda/row_lists.cuh on the way that nearly every patch takes: no list is new, and
the buffer has room. A stage is found by its calls in the source, whose lines the compiler keeps.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sass import Instruction

SOURCE = Path(__file__).parents[1] / "csrc" / "cuda" / "row_lists.cuh"
COUNTS = Path(__file__).parent / "results" / "cuda_selection.json"
BRANCHES = ("BRA", "BSSY", "BSYNC", "CALL", "WARPSYNC", "BRX", "JMP")
PER_PATCH = ("find", "room_for", "write", "add_up")
"""Stages of every patch: hits found, their places in the buffer, written there, and the softmax."""


@dataclass
class Stage:
    """Instructions of a stage, how many of them branch or make ready for it, and the cycles they take to issue."""

    instructions: int = 0
    branches: int = 0
    reconvergences: int = 0
    """BSSY: the warp may take both ways."""
    cycles: int = 0

    def add(self, instruction: Instruction) -> None:
        """Count one more."""
        self.instructions += 1
        self.branches += instruction.opcode in BRANCHES
        self.reconvergences += instruction.opcode == "BSSY"
        self.cycles += instruction.stall


def functions() -> dict[int, str]:
    """The function of RowLists that each line of the source is in."""
    found, name = {}, ""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        start = re.match(r"  (?:template <[^>]*> )?ON_DEVICE (?:static )?[\w:<>&]+ (\w+)\(", line)
        name = start[1] if start else name
        found[number] = name
    return found


def stages(code: Iterable[Instruction]) -> dict[str, Stage]:
    """The stages of a patch; of `flush`, one round of its loop, the second insertion of that, and what is around it."""
    inside = functions()
    text = SOURCE.read_text().splitlines()
    # By the line of `take` that it comes from, too: what is called from two places is there twice, and runs once.
    found: dict[str, dict[int, Stage]] = {}
    for instruction in code:
        chain = [(inside[line], line) for file, line in instruction.lines if file == SOURCE.name and inside[line]]
        calls = [name for name, _ in chain]
        if "take" not in calls:
            continue
        called_at = chain[calls.index("take")][1]
        stage = _stage(text, chain, calls, called_at)
        if stage:
            found.setdefault(stage, {}).setdefault(called_at, Stage()).add(instruction)
    return {stage: max(copies.values(), key=lambda copy: copy.cycles) for stage, copies in found.items()}


def _stage(text: list[str], chain: list[tuple[str, int]], calls: list[str], called_at: int) -> str | None:
    """Which stage an instruction belongs to, by the functions and lines it was inlined through; None for the rest."""
    if "append" in calls or "begin" in calls:
        return None
    if "flush" in calls:
        line = text[chain[calls.index("flush")][1] - 1]
        return {6: "round", 8: "second insertion"}.get(len(line) - len(line.lstrip()), "flush")
    stage = next((name for name in PER_PATCH if name in calls), None)
    if stage == "add_up" and (_again(text, chain[calls.index("add_up")][1]) or "<true>" in text[called_at - 1]):
        return None
    return stage if "show" not in calls else None


def _again(text: list[str], line: int) -> bool:
    """Whether a line of `add_up` is what it does when the first try was too large."""
    return text[line - 1].startswith("      ")


def cycles_of_a_patch(found: dict[str, Stage], k: int, every: bool = True) -> float | None:
    """Cycles of a patch with insertions, as often as they were counted on real features; None without counts for k."""
    counted = json.loads(COUNTS.read_text()).get(str(k)) if COUNTS.is_file() else None
    if counted is None or any(stage not in found for stage in (*PER_PATCH, "round", "second insertion", "flush")):
        return None
    once = found["find"].cycles + found["room_for"].cycles + (found["add_up"].cycles if every else 0)
    often = {"write": "writes", "flush": "flushes", "round": "rounds", "second insertion": "second insertions"}
    return once + sum(found[stage].cycles * counted[event] for stage, event in often.items())
