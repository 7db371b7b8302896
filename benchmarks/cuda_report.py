"""Registers and instructions of the CUDA kernels, without a GPU: python -m benchmarks.cuda_report.

A line per kernel and chip: registers and spilled bytes per thread, and instruction counts by kind. For the scans also
the instructions, branches and cycles of each stage of a patch of products (benchmarks/cuda_stages.py), and the cycles
of a patch with as many candidates as were counted on real features. A kernel is empty on chips it is not meant for.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import sass
from benchmarks.cuda_stages import Stage, cycles_of_a_patch, stages
from csrc.cuda import build

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
CHIPS = ("80", "90a")
NVCC = build.nvcc()
KINDS = {
    "HGMMA": "wgmma",
    "HMMA": "mma.sync",
    "UTMALDG": "bulk copies",
    "LDGSTS": "asynchronous copies",
    "MUFU": "exp2",
}
FIGURES = re.compile(
    r"entry function '(\S+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """A kernel compiled for a chip."""

    name: str
    registers: int
    spilled: int
    """Bytes per thread of stack frame, spill stores and spill loads together."""
    instructions: dict[str, int]
    """Counts by opcode without modifiers; the total under ""."""
    stages: dict[str, Stage]
    """Stages of a patch, for the scans."""

    @property
    def cycles(self) -> tuple[float, float] | None:
        """`cycles_of_a_patch` for the scans of Hopper."""
        scan = self.name.startswith("scan_sm90") and self.stages
        return cycles_of_a_patch(self.stages, int(self.name.split()[2])) if scan else None

    def __str__(self) -> str:
        kinds = [f"{self.instructions[kind]} {name}" for kind, name in KINDS.items() if kind in self.instructions]
        rest = ", ".join([f"{self.instructions['']} instructions", *kinds])
        lines = [f"{self.name}: {self.registers} registers, {self.spilled} spilled, {rest}"]
        lines += [
            f"    {name}: {stage.instructions} instructions, {stage.branches} branches, {stage.cycles} cycles"
            for name, stage in self.stages.items()
        ]
        if self.cycles:
            multiplying, keeping = self.cycles
            lines += [f"    a patch: {multiplying:.0f} cycles of a multiplying warp, {keeping:.0f} of a list warp"]
        return "\n".join(lines)


def kernels(source: Path, chip: str) -> tuple[list[Kernel], str]:
    """Every kernel of a source for a chip, such as "90a", and the compiler's output. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cubin"
        chosen = ("-gencode", f"arch=compute_{chip},code=sm_{chip}", "-lineinfo", "-Xptxas", "-v,-warn-spills")
        command = [NVCC, *build.LANGUAGE, *chosen, "-cubin", "-o", cubin, source]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        code = sass.instructions(cubin)
    found = []
    for name, stack, stores, loads, registers in FIGURES.findall(said):
        counts = {"": len(code[name])}
        for instruction in code[name]:
            counts[instruction.opcode] = counts.get(instruction.opcode, 0) + 1
        spills = int(stack) + int(stores) + int(loads)
        found.append(Kernel(readable(name), int(registers), spills, counts, stages(code[name])))
    return found, said


def readable(mangled: str) -> str:
    """A kernel's name and template arguments, such as scan_sm90 bfloat16 5 everywhere."""
    name = re.search(r"\d+((?:scan|propagate)_[a-z0-9_]+?)(?:I|ENS)", mangled)
    types = re.search(r"I(?:6__(half)|13__nv_(bfloat16))Li(\d+)ELb([01])E", mangled)
    words = [name[1] if name else mangled]
    if types:
        words += [types[1] or types[2], types[3], ("everywhere", "neighborhood")[int(types[4])]]
    return " ".join(words)


def main() -> None:
    """Print the lines of every source and chip."""
    for source in SOURCES:
        for chip in CHIPS:
            for kernel in kernels(source, chip)[0]:
                print(f"sm_{chip} {kernel}")


if __name__ == "__main__":
    main()
