"""The whole plan of make gpu-check on a CPU, with tiny shapes: make gpu-rehearse.

CUDA's kernels run in the emulator, Triton's under its interpreter. What needs a GPU's driver is stood for: ncu,
compute-sanitizer and nvcc by programs that check their options and, where the real one is here, ask it whether it
knows them. It fails if a step fails or finds out nothing, if a prediction is about nothing that is measured, or if a
function of the check was never called. Its results lie in a folder that goes with it: none is a GPU's.

PyTorch and Triton are imported once: each command is a fork of this process, in the place of a program started anew.
"""

import dataclasses
import importlib
import inspect
import json
import os
import runpy
import shutil
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import IO, Any

from benchmarks.gpu_steps import REHEARSAL, Command, Step

ROOT = Path(__file__).parents[1]
MODULES = (
    "gpu_cases",
    "gpu_check",
    "gpu_choices",
    "gpu_evaluator",
    "gpu_headline",
    "gpu_ncu",
    "gpu_plan",
    "gpu_sanitizer",
    "gpu_sequence",
    "gpu_setting",
    "gpu_sm80",
    "gpu_smoke",
    "gpu_steps",
    "gpu_table",
    "gpu_tests",
    "gpu_timing",
    "gpu_training",
)
"""What must be called from end to end; gpu_pytest is in processes of pytest's own, which say nothing without it."""
SLACK = 20  # times what a step may take on a GPU
GPU_ALONE: dict[str, set[str]] = {
    "gpu_check": {"about", "main", "why_not"},
    "gpu_setting": set(),
    "gpu_sm80": {"of_ampere"},
    "gpu_steps": {"start", "stop"},  # of a process that takes too long: tests/test_gpu_check.py
    "gpu_timing": {"_events"},
}
"""What asks a driver, or takes a process of its own."""
STAND_IN = """#!{python}
import subprocess, sys
words = sys.argv[1:]
{check}
"""
NCU = """
place = words.index({python!r})
options, command = words[:place], words[place:]
real = {real!r}
if real:
    asked = subprocess.run([real, *options, "true"], capture_output=True, text=True)
    if "unrecognised" in asked.stdout + asked.stderr or "error parsing" in asked.stderr:
        sys.exit(asked.stdout + asked.stderr)
done = subprocess.run(command)
print({said!r})
sys.exit(done.returncode)
"""
NCU_SAID = (
    '==PROF== Disconnected\n"ID","Kernel Name","gpu__time_duration.sum","sm__inst_executed_pipe_tensor.sum"\n'
    '"","","us","inst"\n"0","scan_sm90","1.0","2"\n'
)
SANITIZER_SAID = "========= ERROR SUMMARY: 0 errors"
NVCC = """
real = {real!r}
if real:
    dry = subprocess.run([real, *words, "--dryrun"], capture_output=True, text=True)
    if dry.returncode:
        sys.exit(dry.stderr + dry.stdout)
open(words[words.index("-o") + 1], "w").close()
"""


def make_stand_ins(folder: Path) -> None:
    """Write the programs that stand for the CUDA toolkit's."""
    toolkit = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/local/cuda/bin"
    real = {name: shutil.which(name, path=toolkit) for name in ("ncu", "compute-sanitizer", "nvcc")}
    checks = {
        "ncu": NCU.format(python=sys.executable, real=real["ncu"], said=NCU_SAID),
        "compute-sanitizer": NCU.format(python=sys.executable, real=real["compute-sanitizer"], said=SANITIZER_SAID),
        "bin/nvcc": NVCC.format(real=real["nvcc"]),
    }
    (folder / "bin").mkdir()
    for name, check in checks.items():
        program = folder / name
        program.write_text(STAND_IN.format(python=sys.executable, check=check))
        program.chmod(0o755)


class Forked:
    """A command as a fork of this process: what benchmarks/gpu_steps.py wants of a process."""

    def __init__(self, command: Command, called: Path) -> None:
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(writing, descriptor)
            os.close(reading)
            os._exit(self._run(command.program, command.arguments, called))
        os.close(writing)
        self.stdout: IO[str] = os.fdopen(reading, errors="replace")

    @staticmethod
    def _run(program: str, arguments: tuple[str, ...], called: Path) -> int:
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
        os.chdir(ROOT)
        sys.argv = [program, *arguments]
        status, calls = 0, Calls()
        try:
            with calls:
                if program.endswith(".py"):
                    runpy.run_path(program, run_name="__main__")
                else:
                    runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
        except SystemExit as ending:
            if isinstance(ending.code, str):
                print(ending.code, file=sys.stderr)
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        (called / str(os.getpid())).write_text("\n".join(sorted(calls.seen)))
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    def poll(self) -> int | None:
        """The status, if it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """The status, when it has ended."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Calls:
    """Which functions of benchmarks/gpu_*.py are called meanwhile, in all threads: file:line."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __enter__(self) -> "Calls":
        threading.settrace(self._note)
        sys.settrace(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if "gpu_" in name:
            self.seen.add(place(frame.f_code))


def place(code: CodeType) -> str:
    """Where a function is, file:line."""
    return f"{Path(code.co_filename).stem}:{code.co_firstlineno}"


def functions(module: ModuleType) -> dict[str, str]:
    """Every function that a module defines, its name by its place; lambdas and comprehensions are part of others."""
    found: dict[str, str] = {}
    waiting = [compile(inspect.getsource(module), str(module.__file__), "exec")]
    while waiting:
        inner = [constant for constant in waiting.pop().co_consts if isinstance(constant, CodeType)]
        waiting += inner
        found |= {
            place(code): code.co_name
            for code in inner
            if not code.co_name.startswith("<") and code.co_flags & inspect.CO_NEWLOCALS and code.co_flags & 1
        }
    return found


def never_called(seen: set[str]) -> list[str]:
    """Functions of the check that nothing called."""
    found = []
    for name in MODULES:
        every = functions(importlib.import_module(f"benchmarks.{name}"))
        found += [
            f"benchmarks/{name}.py: {function} was never called"
            for where, function in every.items()
            if where not in seen and function not in GPU_ALONE.get(name, ())
        ]
    return found


def rehearse(folder: Path) -> list[str]:
    """Run the plan; what is wrong, a sentence each."""
    from benchmarks import gpu_check, gpu_plan
    from benchmarks.gpu_table import table

    called = folder / "called"
    called.mkdir()
    about = {"gpu": "none: a rehearsal", "date": "rehearsal", "commit": "rehearsal", "capability": "none"}
    plan = gpu_plan.plan(folder / "made", 2)
    with Calls() as calls:
        results = gpu_check.Results(gpu_check.results_path(folder / "results", about, "all"), about)
        for part, steps in plan.items():
            rehearsed = [for_a_cpu(step, folder) for step in steps]
            gpu_check.run_part(part, rehearsed, results, lambda command: Forked(command, called))
        print("\n".join(table(results.content)))
    wrong = []
    for part, steps in plan.items():
        total = sum(step.seconds for step in steps)
        wrong += [f"the steps of {part} take {total:.0f} s"] if total > gpu_plan.LIMITS[part] else []
        for step in steps:
            outcome = results.content["parts"][part].get(step.name)
            wrong += [f"{part}, {step.name} was skipped"] if outcome is None else outcome["failed"]
    figures = [f for steps in results.content["parts"].values() for step in steps.values() for f in step["figures"]]
    for name, fields in json.loads(gpu_check.PREDICTIONS.read_text()).items():
        measured = next((figure for figure in figures if figure["name"] == name), {})
        wrong += [f"nothing measures the predicted {field} of {name}" for field in fields if field not in measured]
    seen = calls.seen.union(*(path.read_text().splitlines() for path in called.iterdir()))
    return wrong + never_called(seen)


def for_a_cpu(step: Step, folder: Path) -> Step:
    """A step with time for a busy machine, that builds nothing into the checkout, two commands side by side."""
    commands = []
    for command in step.commands:
        arguments = command.arguments
        if command.program.endswith(".py") and "--out" not in arguments:
            arguments += ("--out", str(folder / "made" / "_cuda.so"))
        if command.program == "gpu_tests":
            arguments += ("--seconds", "600")
        commands.append(dataclasses.replace(command, arguments=arguments, seconds=SLACK * command.seconds))
    at_once = min(2, step.at_once)
    return dataclasses.replace(step, commands=tuple(commands), seconds=SLACK * step.seconds, at_once=at_once)


def main() -> None:
    """Rehearse; status 1 if anything is wrong."""
    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as made:
        folder = Path(made)
        make_stand_ins(folder)
        os.environ |= {REHEARSAL: made, "TRITON_INTERPRET": "1", "CUDA_HOME": made, "OMP_NUM_THREADS": "1"}
        for name in ("av", "setuptools"):  # which are not where a GPU is, or in any version
            sys.modules[name] = None  # type: ignore[assignment]
        from tests import emulator

        emulator.build()
        for name in ("triton", "tests.kernel_cases", "timecycle.kernels.topk_affinity_cuda", "timecycle.objective"):
            importlib.import_module(name)
        wrong = rehearse(folder)
    if wrong:
        sys.exit("\n".join(["", f"error: {len(wrong)} things are wrong:", *wrong]))
    print("every step of make gpu-check has run")


if __name__ == "__main__":
    main()
