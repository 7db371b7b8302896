"""Build the CUDA module: python csrc/cuda/build.py [--chips sm_90a ...] [--out FILE].

Needs only nvcc, a C++ compiler, pybind11 and Python's headers: neither PyTorch nor setuptools nor the package itself.
setup.py uses the functions of this file. Sources are compiled in parallel, one nvcc process each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = sorted(path for suffix in ("cu", "cpp") for path in HERE.glob(f"*.{suffix}"))
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
INPLACE = HERE.parents[1] / "timecycle" / f"_cuda{SUFFIX}"
"""The module's place in a checkout."""
TARGETS = {
    "sm_80": "arch=compute_80,code=[sm_80,compute_80]",
    "sm_90a": "arch=compute_90a,code=sm_90a",
    "compute_80": "arch=compute_80,code=compute_80",
}
"""nvcc's -gencode options. compute_80 is PTX alone, which the driver compiles: it runs on any chip from Ampere on."""
CHIPS = ("sm_80", "sm_90a")
"""The installed module's: Ampere and Hopper; on newer chips the driver compiles the former's PTX."""
LANGUAGE = ("-std=c++20", "-O3")
OPTIONS = (*LANGUAGE, "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall", "--threads", "0")


def nvcc() -> str | None:
    """The compiler: that of CUDA_HOME if set, else the one on the PATH or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("/usr/local/cuda/bin/nvcc")


def inputs() -> list[Path]:
    """Every file that the module depends on."""
    headers = [*HERE.parent.rglob("*.h"), *HERE.glob("*.cuh")]
    return [*SOURCES, *headers, Path(__file__)]


def includes() -> list[str]:
    """Compiler options for the headers of pybind11 and Python. Raises RuntimeError if one is not there."""
    try:
        import pybind11
    except ImportError:
        raise RuntimeError(f"pybind11 is not installed for {sys.executable}") from None
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").is_file():
        raise RuntimeError(f"{python}/Python.h is not there; install Python's headers (python3-dev)")
    return [f"-I{pybind11.get_include()}", f"-I{python}"]


def build(out: Path, chips: tuple[str, ...] = CHIPS) -> None:
    """Compile and link the module for chips (names in TARGETS) into the file `out`, atomically.

    Raises RuntimeError with the compiler's first error.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc is not here")
    command = [compiler, *OPTIONS, *(part for chip in chips for part in ("-gencode", TARGETS[chip]))]
    compiling, out = [*command, *includes(), "-c"], out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)  # so that a failed build does not leave an older module
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        objects = [f"{folder}/{source.stem}.o" for source in SOURCES]
        with ThreadPoolExecutor(len(SOURCES)) as pool:
            list(pool.map(lambda source, to: _run([*compiling, str(source), "-o", to]), SOURCES, objects))
        _run([*command, "-shared", *objects, "-o", f"{folder}/module"])
        Path(folder, "module").replace(out)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        raise RuntimeError(next((line for line in lines if "error" in line), f"nvcc ended with {done.returncode}"))


def main() -> None:
    """Build the module and print a line of JSON; on failure exit with status 1 and one sentence."""
    parser = argparse.ArgumentParser(prog="python csrc/cuda/build.py", description=__doc__)
    parser.add_argument("--chips", nargs="+", choices=TARGETS, default=CHIPS, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=INPLACE, help="the module's file (default: %(default)s)")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        build(options.out, tuple(options.chips))
    except RuntimeError as error:
        sys.exit(f"error: the CUDA module is not built: {error}")
    seconds = round(time.monotonic() - start, 1)
    print(json.dumps({"name": f"build for {', '.join(options.chips)}", "seconds": seconds, "file": options.out.name}))


if __name__ == "__main__":
    main()
