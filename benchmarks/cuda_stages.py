"""Instructions per stage of a patch of products, counted in the machine code of csrc/cuda.

The stages of multiplying warps are functions of csrc/cuda/row_candidates.cuh, on the common path: no new list, room in
the buffer, converged lanes. Those of list warps, in row_lists.cuh, are a round of `take` and the code around it.
Instructions are assigned to stages by the source lines that they were inlined through.
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
"""Stages of a multiplying warp: find candidates, compute their buffer offsets, push them, accumulate the softmax."""
KEPT = ("round", "around")
"""Stages of a list warp: a round that merges a few candidates of every row, and the code around it."""


@dataclass
class Stage:
    """Instructions of a stage, how many of them branch or prepare to, and the cycles to issue them."""

    instructions: int = 0
    branches: int = 0
    reconvergences: int = 0
    """BSSY: the warp may diverge."""
    cycles: int = 0

    def add(self, instruction: Instruction) -> None:
        """Count an instruction."""
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


def converged(code: Iterable[Instruction]) -> list[Instruction]:
    """The code up to its last EXIT, behind which the compiler puts paths of diverged warps (BRA.DIV)."""
    code = list(code)
    end = max((i for i, instruction in enumerate(code) if instruction.opcode == "EXIT"), default=len(code))
    return code[:end]


def stages(code: Iterable[Instruction]) -> dict[str, Stage]:
    """The stages of a patch, by name."""
    inside = {file: functions(file) for file in (CANDIDATES, LISTS)}
    text = {file: (FOLDER / file).read_text().splitlines() for file in inside}
    # Separately by calling line of `take`: code inlined at two places is there twice, and runs once.
    found: dict[str, dict[int, Stage]] = {}
    for instruction in converged(code):
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
    """An instruction's stage of row_candidates.cuh, by the functions and lines it was inlined through."""
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
    """Cycles per patch of a multiplying warp, and of a list warp, which serves two of these.

    With the number of candidates counted on real features; None without counts for k, or where there are no list warps.
    """
    counted = json.loads(COUNTS.read_text()).get(str(k)) if COUNTS.is_file() else None
    if counted is None or any(stage not in found for stage in (*PER_PATCH, *KEPT)):
        return None
    once = sum(found[stage].cycles for stage in ("find", "offsets_of", "accumulate_softmax"))
    kept = found["around"].cycles * counted["flushes"] + found["round"].cycles * counted["rounds"]
    return once + found["push_candidates"].cycles * counted["writes"], kept
