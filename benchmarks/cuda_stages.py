"""What warps do with a patch of products, stage by stage, counted from the machine code of csrc/cuda.

The stages are the functions of csrc/cuda/row_candidates.cuh, of warps that multiply, on the way that nearly every patch
takes: no list is new, the buffer has room, and the lanes of a warp are together. Of row_lists.cuh, of warps that keep
the lists, they are a round of `take` and what is around it. A stage is found by its calls in the source, whose lines
the compiler keeps.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sass import Instruction

FOLDER = Path(__file__).parents[1] / "csrc" / "cuda"
CANDIDATES, LISTS = "row_candidates.cuh", "row_lists.cuh"
COUNTS = Path(__file__).parent / "results" / "cuda_selection.json"
BRANCHES = ("BRA", "BSSY", "BSYNC", "CALL", "WARPSYNC", "BRX", "JMP")
PER_PATCH = ("find", "offsets_of", "push_candidates", "accumulate_softmax")
"""Stages of a multiplying warp: candidates found, their offsets in the buffer, pushed there, and the softmax."""
KEPT = ("round", "around")
"""Of a warp that keeps lists: a few candidates of every row merged, and what is around that."""


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


def functions(file: str) -> dict[int, str]:
    """The function that each line of a source is in."""
    found, name = {}, ""
    for number, line in enumerate((FOLDER / file).read_text().splitlines(), 1):
        start = re.match(r"  (?:template <[^>]*> )?ON_DEVICE (?:static )?[\w:<>&]+ (\w+)\(", line)
        name = start[1] if start else name
        found[number] = name
    return found


def together(code: Iterable[Instruction]) -> list[Instruction]:
    """The code up to its last EXIT.

    Behind it the compiler puts what a warp does at an exchange or a vote whose lanes it finds apart [BRA.DIV].
    """
    code = list(code)
    end = max((i for i, instruction in enumerate(code) if instruction.opcode == "EXIT"), default=len(code))
    return code[:end]


def stages(code: Iterable[Instruction]) -> dict[str, Stage]:
    """The stages of a patch."""
    inside = {file: functions(file) for file in (CANDIDATES, LISTS)}
    text = {file: (FOLDER / file).read_text().splitlines() for file in inside}
    # By the line of `take` that it comes from, too: what is called from two places is there twice, and runs once.
    found: dict[str, dict[int, Stage]] = {}
    for instruction in together(code):
        for file, names in inside.items():
            chain = [(names[line], line) for name, line in instruction.lines if name == file and names[line]]
            calls = [name for name, _ in chain]
            if "take" not in calls:
                continue
            called_at = chain[calls.index("take")][1]
            if file == CANDIDATES:
                stage = _of_candidates(text[file], chain, calls, called_at)
            else:
                stage, called_at = KEPT[0] if _deep(text[file], called_at) else KEPT[1], 0
            if stage:
                found.setdefault(stage, {}).setdefault(called_at, Stage()).add(instruction)
    return {stage: max(copies.values(), key=lambda copy: copy.cycles) for stage, copies in found.items()}


def _of_candidates(text: list[str], chain: list[tuple[str, int]], calls: list[str], called_at: int) -> str | None:
    """The stage of row_candidates.cuh of an instruction, by the functions and lines it was inlined through."""
    if "estimate_thresholds" in calls:
        return None
    stage = next((name for name in PER_PATCH if name in calls), None)
    if stage == "accumulate_softmax":
        inside = chain[calls.index("accumulate_softmax")][1]
        if _deep(text, inside) or "<true>" in text[called_at - 1]:
            return None
    return stage


def _deep(text: list[str], line: int) -> bool:
    """Whether a line is in a nested block: the rare path of `accumulate_softmax`, or the loop of `take`."""
    return text[line - 1].startswith("      ")


def cycles_of_a_patch(found: dict[str, Stage], k: int) -> tuple[float, float] | None:
    """Cycles of a patch of a warp that multiplies and of one that keeps lists, which has the patches of two such warps.

    Candidates are as many as were counted on real features; None without counts for k, or where no warp keeps lists
    alone.
    """
    counted = json.loads(COUNTS.read_text()).get(str(k)) if COUNTS.is_file() else None
    if counted is None or any(stage not in found for stage in (*PER_PATCH, *KEPT)):
        return None
    once = sum(found[stage].cycles for stage in ("find", "offsets_of", "accumulate_softmax"))
    kept = found["around"].cycles * counted["flushes"] + found["round"].cycles * counted["rounds"]
    return once + found["push_candidates"].cycles * counted["writes"], kept
