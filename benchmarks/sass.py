"""Machine code as nvdisasm prints it, with the source line of each instruction.

Since Volta an instruction's upper bits hold a stall count: the cycles before the warp may issue its next instruction,
which cover fixed-latency results and busy units. Waiting for variable-latency instructions (memory, exponentials,
votes) comes on top and is not included.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from triton.backends import nvidia

NVDISASM = Path(nvidia.__file__).parent / "bin" / "nvdisasm"  # works without the CUDA toolkit
_PLACE = re.compile(r'\s*//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
_LOWER = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);\s+/\* 0x[0-9a-f]+ \*/")
_UPPER = re.compile(r"\s+/\* 0x([0-9a-f]+) \*/")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel."""

    opcode: str
    """Without modifiers: FADD, STS, BRA."""
    stall: int
    """Cycles until the warp may issue the next one."""
    lines: tuple[tuple[str, int], ...]
    """File name and line, innermost first, then the places it was inlined at."""


def instructions(cubin: Path) -> dict[str, list[Instruction]]:
    """Instructions of every kernel in a file compiled with -lineinfo, by mangled name. Raises CalledProcessError."""
    command = [NVDISASM, "-hex", "-gi", cubin]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[Instruction]] = {}
    code: list[Instruction] | None = None
    lines: list[tuple[str, int]] = []
    outer: tuple[str, str] | None = None
    text = ""
    for line in said.splitlines():
        if line.startswith(".text."):
            code = found.setdefault(line.removeprefix(".text.").rstrip(":"), [])
        elif line.lstrip().startswith(".section"):
            code = None
        elif code is None:
            continue
        elif place := _PLACE.match(line):
            if outer != (place[1], place[2]):
                lines = []
            lines.append((Path(place[1]).name, int(place[2])))
            outer = (place[3], place[4])
        elif lower := _LOWER.match(line):
            text = lower[1]
        elif text and (upper := _UPPER.match(line)):
            opcode = re.sub(r"^@!?U?P\w+\s+", "", text.strip()).split(".")[0].split()[0]
            code.append(Instruction(opcode, int(upper[1], 16) >> 41 & 15, tuple(lines)))
            text = ""
    return found
