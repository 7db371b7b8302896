"""What nvcc makes of csrc/cuda, on a machine without a GPU: python -m benchmarks.cuda_report.

One line a kernel and chip: registers and spilled bytes of a thread, and how many instructions of some kinds it has. A
kernel is empty on a chip that it is not for.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from triton.backends import nvidia

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
CHIPS = ("80", "90a")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"  # the CUDA toolkit's own need not be here
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
    """A kernel as compiled for a chip."""

    name: str
    registers: int
    spilled: int
    """Bytes of a thread's stack, of spill stores and of spill loads, together."""
    instructions: dict[str, int]
    """By the opcode's first part; all of them under ""."""

    def __str__(self) -> str:
        kinds = [f"{self.instructions[kind]} {name}" for kind, name in KINDS.items() if kind in self.instructions]
        rest = ", ".join([f"{self.instructions['']} instructions", *kinds])
        return f"{self.name}: {self.registers} registers, {self.spilled} spilled, {rest}"


def kernels(source: Path, chip: str) -> tuple[list[Kernel], str]:
    """Every kernel of a source for a chip, such as "90a", and all that the compiler said; CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "cubin"
        chosen = (
            "-gencode",
            f"arch=compute_{chip},code=sm_{chip}",
            "-Xptxas",
            "-v,-warn-spills",
            "-cubin",
            "-o",
            cubin,
        )
        command = [NVCC, "-std=c++20", "-O3", *chosen, source]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        dumped = subprocess.run([CUOBJDUMP, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    code = dict(part.split("\n", 1) for part in dumped.split("Function : ")[1:])
    found = []
    for name, stack, stores, loads, registers in FIGURES.findall(said):
        counts = {"": 0}
        for opcode in re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9]+)", code[name], re.MULTILINE):
            counts[""] += 1
            counts[opcode] = counts.get(opcode, 0) + 1
        found.append(Kernel(readable(name), int(registers), int(stack) + int(stores) + int(loads), counts))
    return found, said


def readable(mangled: str) -> str:
    """A kernel's name and template arguments: scan_sm90 bfloat16 5 everywhere."""
    name = re.search(r"\d+((?:scan|propagate)_[a-z0-9_]+?)(?:I|ENS)", mangled)
    types = re.search(r"I(?:6__(half)|13__nv_(bfloat16))Li(\d+)ELb([01])E", mangled)
    words = [name[1] if name else mangled]
    if types:
        words += [types[1] or types[2], types[3], ("everywhere", "region")[int(types[4])]]
    return " ".join(words)


def main() -> None:
    """Print the lines of every source and chip."""
    for source in SOURCES:
        for chip in CHIPS:
            for kernel in kernels(source, chip)[0]:
                print(f"sm_{chip} {kernel}")


if __name__ == "__main__":
    main()
