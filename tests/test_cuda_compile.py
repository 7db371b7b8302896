"""The CUDA kernels compiled by nvcc: registers, instructions and cycles; the module links and loads.

Needs nvcc and no GPU. tests/test_cuda_kernels.py checks numerics.
"""

import operator
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed, whose disassembler is used")
from benchmarks.cuda_report import CHIPS, NVCC, SOURCES, kernels

ROOT = Path(__file__).parents[1]
# Each kernel's chip and tensor core instruction; for other chips its body is empty.
PRODUCTS = {"topk_affinity_sm80": ("80", "HMMA"), "topk_affinity_sm90": ("90a", "HGMMA")}

# Cycles per patch of a warp that multiplies and one that keeps lists: softmax over all keys, candidate counts of real
# features (benchmarks/results/cuda_selection.json).
MOST_CYCLES = {"5": (1800, 700), "10": (1850, 1300), "20": (1950, 3100)}

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@pytest.mark.gpu_sim
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_kernel_spills_and_products_use_tensor_cores(source, chip):
    found, said = kernels(source, chip)
    assert found, said
    for kernel in found:
        assert kernel.spilled == 0, kernel
    assert "serialized" not in said  # ptxas warns of wgmma that it serializes
    with_products, opcode = PRODUCTS.get(source.stem, (None, ""))
    if chip == with_products:
        assert all(opcode in kernel.instructions for kernel in found), "\n".join(map(str, found))
    if source.stem == "topk_affinity_sm90" and chip == "90a":
        for kernel in found:
            stages = ("find", "push_candidates", "round", "offsets_of", "accumulate_softmax")
            patch = [kernel.stages[name] for name in stages]
            assert sum(stage.reconvergences for stage in patch) == 0, kernel
            assert [stage.branches for stage in patch[:3]] == [0] * 3, kernel
            assert patch[3].branches <= 1, kernel  # to a reconvergence point
            if kernel.name.endswith("everywhere"):
                assert all(map(operator.lt, kernel.cycles, MOST_CYCLES[kernel.name.split()[2]])), kernel


# PTX alone, not optimized, is made fast; machine code is checked above.
BUILDS = {
    "of PTX": ("csrc/cuda/build.py", "--chips", "compute_80", "--out", "timecycle/_cuda.so"),
    "by setup.py": ("setup.py", "--quiet", "build", "--build-lib", "."),
}


@pytest.mark.parametrize(
    "how", [pytest.param("of PTX", marks=pytest.mark.gpu_sim), pytest.param("by setup.py", marks=pytest.mark.nightly)]
)
def test_the_module_builds_without_a_gpu_and_its_error_names_the_driver(tmp_path, how):
    program, *options, place = BUILDS[how]
    command = [sys.executable, program, *options, tmp_path / place]
    environment = os.environ | {"TIMECYCLE_CUDA": "1"}
    if how == "of PTX":
        environment["NVCC_APPEND_FLAGS"] = "-Xcicc -O0"
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    code = "import _cuda; _cuda.propagate_sequence(0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, True, 0, 0)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "timecycle", env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert re.search(r"RuntimeError: .*(driver|device)", run.stderr), run.stderr


def test_a_failing_nvcc_leaves_out_the_cuda_module_with_one_line(tmp_path):
    # The C++ sources are replaced by an empty one, since only the end of their build matters here.
    for name in ("setup.py", "pyproject.toml", "README.md", "timecycle/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "csrc" / "cuda")
    (tmp_path / "csrc" / "empty.cpp").touch()
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\necho "x.cu(3): error: this is broken" >&2\nexit 1\n')
    compiler.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "TIMECYCLE_REQUIRE_NATIVE"}
    environment |= {"TIMECYCLE_CUDA": "1", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "built"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert [line for line in run.stderr.splitlines() if "not built" in line] == [
        "CUDA kernels are not built: x.cu(3): error: this is broken"
    ]
    assert [path.name.split(".")[0] for path in (tmp_path / "built" / "timecycle").glob("*.so")] == ["_C"]
