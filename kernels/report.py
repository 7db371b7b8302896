"""Registers, spills and matrix instructions of the compiled kernels: python -m timecycle.kernels.report sm_90.

Every kernel is compiled ahead of time by the installed Triton in all shipped configurations. One line each shows its
registers, spilled bytes (NVIDIA) or registers (AMD) per thread, shared memory, and the number of matrix instructions.
tests/test_kernels_compile.py checks them. With --record, spills are written to spills.json: {version of Triton: {chip:
{case: spills}}}, where a chip appears if all its cases compiled.
"""

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from . import (
    affinity_propagate,
    attention,
    contract,
    propagate_labels,
    tiles,
    topk_affinity,
    topk_affinity_backward,
    topk_affinity_ties,
)
from .plan import Plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "gfx942": "v_mfma"}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
POINTERS = dict.fromkeys(("frames", "multiplicity", "entries", "bounds"), "*i64")
POINTERS |= dict.fromkeys(("values", "tops", "sums", "kth", "denominators", "mean", "weights", "out"), "*fp32")
POINTERS |= dict.fromkeys(("labels", "gradient", "source"), "*fp32")
RECORD = Path(__file__).parent / "spills.json"


@dataclass(frozen=True)
class Case:
    """A kernel in one configuration."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    options: dict[str, int]
    types: dict[str, str]
    """Types of the arguments that are neither in POINTERS nor integers."""
    forward: bool
    matrix: bool
    """Whether it must use the chip's matrix units."""


@dataclass(frozen=True)
class Report:
    """Resources of a compiled case."""

    registers: int
    spills: int
    shared: int
    matrix: int

    def __str__(self) -> str:
        return f"{self.registers} registers, {self.spills} spilled, {self.shared} bytes shared, {self.matrix} matrix"


@dataclass(frozen=True)
class _Problem:
    """A problem of D = 512 channels; only its compile-time properties matter."""

    query: torch.Tensor
    k: int = 1
    softmax_over_all: bool = False
    keep_ties: bool = False
    grid_width: int = 0
    joint: bool = False
    temperature: float = 1.0

    @property
    def bank(self) -> torch.Tensor:
        return self.query

    @property
    def frames(self) -> torch.Tensor:
        return torch.empty((1, 8), dtype=torch.int64, device="meta")

    multiplicity = frames

    @property
    def half_widths(self) -> list[int]:
        return [12] * 13 if self.grid_width else []


def _plan(dtype: torch.dtype, precision: str, neighborhood: bool, **options: Any) -> Plan:
    features = torch.empty((1, 3600, 512), dtype=dtype, device="meta")
    problem = _Problem(features, grid_width=60 if neighborhood else 0, **options)
    return Plan.of(problem)._replace(precision=precision)


def cases(chip: str) -> list[Case]:
    """Every kernel in the shipped configurations: D a multiple of its step (256, 384, 512), k 5, 10, 20, 64 and 128."""
    found = []
    kinds = {"bfloat16": (torch.bfloat16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
    for kind, (dtype, precision) in kinds.items():
        types = {"query": TYPES[dtype], "bank": TYPES[dtype], "indices": "*i32", "numbers": "*i32"}
        matrix = kind != "ieee" or chip == "gfx942"

        def add(name, kernel, constants, options, forward=True, kind=kind, types=types, matrix=matrix):  # type: ignore[no-untyped-def]
            found.append(Case(f"{kernel.__name__} {kind} {name}", kernel, constants, options, types, forward, matrix))

        for neighborhood in (False, True):
            where = "neighborhood" if neighborhood else "everywhere"
            for k in (5, 10, 20, 64, 128) if kind == "bfloat16" else (20, 128):
                tile = tiles.forward_tile(chip, dtype, precision, k)
                # As published: softmax over all without a neighborhood, over the top k with one; and both once.
                for softmax_over_all in (True, False) if k == 20 else (not neighborhood,):
                    plan = _plan(dtype, precision, neighborhood, k=k, softmax_over_all=softmax_over_all)
                    constants = topk_affinity.scan_constants(plan, tile)
                    name = f"k={k} {where} {'all' if softmax_over_all else 'topk'}"
                    add(name, topk_affinity.scan, constants, tile.options())
            tile = tiles.forward_tile(chip, dtype, precision, 5)
            for fill in (False, True):
                constants = {"FILL": fill, **plan.constants(tile)}
                options = topk_affinity_ties.ties_options(chip, tile)
                add(f"{where} {'fill' if fill else 'count'}", topk_affinity_ties.reached, constants, options)
            tile = tiles.gradient_tile(chip, dtype, precision)
            constants = topk_affinity_backward.gradient_constants(plan, tile)
            for kernel in (topk_affinity_backward.to_queries, topk_affinity_backward.to_keys):
                add(where, kernel, constants, tile.options(), forward=False)
    return found + _small_cases(chip) + _attention_cases(chip)


def _small_cases(chip: str) -> list[Case]:
    """The kernels without a product."""
    found = []
    for k, merged, softmax_over_all, ties, neighborhood in (
        (5, 1, True, False, False),
        (20, 8, True, True, False),
        (10, 21, False, True, True),
    ):
        options = {"k": k, "softmax_over_all": softmax_over_all, "keep_ties": ties}
        constants = topk_affinity.finish_constants(_plan(torch.float32, "ieee", neighborhood, **options), merged)
        name = f"finish k={k} of {merged} lists"
        types = {"indices": "*i32", "kept": "*i64"}
        found.append(Case(name, topk_affinity.finish, constants, {"num_warps": 4}, types, True, False))
    for k, merged, softmax_over_all, neighborhood, length in (
        (5, 1, True, False, 10),
        (20, 1, True, True, 100),
        (10, 21, False, True, 10),
    ):
        plan = _plan(torch.float32, "ieee", neighborhood, k=k, softmax_over_all=softmax_over_all)
        constants = affinity_propagate.propagate_constants(plan, merged, length)
        name = f"propagate k={k} of {merged} lists L={length}"
        types, options = {"indices": "*i32", "label_frames": "*i64"}, affinity_propagate.propagate_options(chip)
        found.append(Case(name, affinity_propagate.propagate, constants, options, types, True, False))
    for length in (10, 512):
        columns, rows = propagate_labels.block(length)
        shape = {"COLUMNS": columns, "ROWS": rows}
        for kernel, forward in ((propagate_labels.gather, True), (propagate_labels.products, False)):
            name, types = f"{kernel.__name__} L={length}", {"indices": "*i64"}
            found.append(Case(name, kernel, shape, {"num_warps": 4}, types, forward, False))
        shape = {"COLUMNS": columns, "ENTRIES": propagate_labels.ENTRIES}
        found.append(Case(f"scatter L={length}", propagate_labels.scatter, shape, {"num_warps": 2}, {}, False, False))
    return found


def _attention_cases(chip: str) -> list[Case]:
    """The products of attention and its gradient, rows and columns as they lie there; and the softmax between them."""
    found = []
    uses = (  # the softmax (or its gradient) on the left?; the dimensions of both that lie side by side; forward?
        ("logits", contract.PLAIN, False, ("left_k", "right_k"), True),
        ("out", contract.MOVED_ROWS, True, ("left_k", "right_j"), True),
        ("d_softmax", contract.MOVED_ROWS, False, ("left_k", "right_k"), False),
        ("d_query", contract.PLAIN, True, ("left_k", "right_j"), False),
        ("d_key", contract.PLAIN, True, ("left_i", "right_j"), False),
        ("d_value", contract.MOVED_TERMS, True, ("left_i", "right_j"), False),
    )
    kinds = {"bfloat16": (torch.bfloat16, "ieee"), "float16": (torch.float16, "ieee")}
    kinds |= {"tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
    for kind, (dtype, wanted) in kinds.items():
        kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        for use, moved, softmax, ones, forward in uses:
            left, precision = (kept, wanted if kept == dtype else "tf32") if softmax else (dtype, wanted)
            out = torch.float32 if use in ("logits", "d_softmax", "d_value") else dtype
            types = {"left": TYPES[left], "right": TYPES[dtype], "out": TYPES[out], "shifts": "*i64", "factor": "fp32"}
            tile = tiles.forward_tile(chip, left, precision)
            constants = contract.contract_constants(moved, precision, tile) | dict.fromkeys(ones, 1)
            matrix = kind != "ieee" or chip == "gfx942"
            name = f"contract {kind} {use}"
            found.append(Case(name, contract.contract, constants, tile.options(), types, forward, matrix))
        if kind == "float16":  # whose softmax is float32's
            continue
        types = dict.fromkeys(("logits", "gradient", "scale", "lse", "d_lse", "d_scale"), "*fp32")
        types |= {"shares": TYPES[kept], "d_products": TYPES[kept], "softmax_scale": "fp32"}
        for kernel, forward in ((attention.normalize, True), (attention.normalize_backward, False)):
            for drop in (False, True) if kind != "tf32" else ():
                constants, options = attention.softmax_constants(drop), {"num_warps": attention.WARPS}
                name = f"{kernel.__name__} {TYPES[kept]} {'dropped' if drop else 'whole'}"
                found.append(Case(name, kernel, constants, options, types, forward, False))
    return found


def compile_case(case: Case, chip: str) -> Report:
    """Compile a case for a chip as the launcher would, all sizes multiples of 16."""
    signature, attributes = {}, {}
    for place, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            continue
        signature[name] = (
            case.types.get(name) or POINTERS.get(name) or ("fp32" if name == "softmax_scale_log2" else "i32")
        )
        specialized = case.kernel.params[place].do_not_specialize is False
        if signature[name].startswith("*") or (specialized and signature[name] == "i32"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    compiled = triton.compile(source, target=TARGETS[chip], options=case.options)
    shared = compiled.metadata.shared
    if chip == "gfx942":
        text = compiled.asm["amdgcn"]
        registers, spills = (int(re.search(rf"\.{x}:\s+(\d+)", text)[1]) for x in ("vgpr_count", "vgpr_spill_count"))
    else:
        text = compiled.asm["ptx"]
        registers, spills = _assemble(text, "sm_90a" if chip == "sm_90" else chip)
    return Report(registers, spills, shared, text.count(MATRIX[chip]))


def _assemble(ptx: str, architecture: str) -> tuple[int, int]:
    """Registers and spilled bytes a thread, from the ptxas that Triton itself uses for the chip."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = get_ptxas(int(architecture[3:5])).path
        command = [ptxas, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Used (\d+) registers", said)[1]), int(re.search(r"(\d+) bytes spill stores", said)[1])


def main() -> None:
    """Print a line for every case on the chips named on the command line, all if none is."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("chips", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--record", action="store_true", help="write what spills to spills.json")
    arguments = parser.parse_args()
    for chip in arguments.chips or TARGETS:
        spills = {}
        for case in cases(chip):
            found = compile_case(case, chip)
            print(f"Triton {triton.__version__}, {chip}, {case.name}: {found}", flush=True)
            if found.spills:
                spills[case.name] = found.spills
        if arguments.record:
            record = json.loads(RECORD.read_text())
            record.setdefault(triton.__version__, {})[chip] = spills
            RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
