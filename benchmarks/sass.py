"""Machine code as nvdisasm prints it, with the line of the source that each instruction comes from.

An instruction of Volta's and later chips says in its upper bits for how many cycles the warp must not issue its next
one. The compiler counts on it for the results of instructions of fixed length and for units that are busy. That what
takes a varying time (memory, exponentials, votes) may be late comes on top, and is not in it.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from triton.backends import nvidia

NVDISASM = Path(nvidia.__file__).parent / "bin" / "nvdisasm"  # the CUDA toolkit's own need not be here
_PLACE = re.compile(r'\s*//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
_LOWER = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);\s+/\* 0x[0-9a-f]+ \*/")
_UPPER = re.compile(r"\s+/\* 0x([0-9a-f]+) \*/")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel."""

    opcode: str
    """Its first part: FADD, STS, BRA."""
    stall: int
    """Cycles until the warp may issue the next one."""
    lines: tuple[tuple[str, int], ...]
    """File name and line it comes from, then the place that line was inlined at, and so on outwards."""


def instructions(cubin: Path) -> dict[str, list[Instruction]]:
    """Every kernel of a file compiled with -lineinfo, by its mangled name; CalledProcessError."""
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
