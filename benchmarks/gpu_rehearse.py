"""The whole plan of make gpu-check on a CPU, with tiny shapes: make gpu-rehearse.

CUDA's kernels run in the emulator, Triton's under its interpreter. What needs a GPU's driver is stood for: ncu,
compute-sanitizer and nvcc by programs that check their options and, where the real one is here, ask it whether it
knows them. It fails if a step fails or finds out nothing, if a prediction is about nothing that is measured, or if a
function of the check was never called. Its results lie in a folder that goes with it: none is a GPU's.

PyTorch and Triton are imported once: each command is a fork of this process, in the place of a program started anew.
"""

import ast
import builtins
import dataclasses
import importlib
import json
import os
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # the check is imported when its calls are noted
    from benchmarks.gpu_steps import Command, Step

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
CALLED: set[str] = set()
"""Functions that were called in this process; see Noting."""
SLACK = 20  # times what a step may take on a GPU
GPU_ALONE = {
    # What asks a driver, or begins a process in a way of its own.
    "gpu_check.about",
    "gpu_check.main",
    "gpu_check.why_not",
    "gpu_plan.build_folder",
    "gpu_sm80.of_ampere",
    "gpu_steps.Command.line",
    "gpu_steps.start",
    "gpu_timing._events",
    "gpu_timing._rounds",
    # What runs in the stand-in's process, whose last line is asked for.
    "gpu_sanitizer.launch",
    "gpu_sanitizer.launch.enough",
    "gpu_sanitizer.shapes",
    # What only a failure calls: tests/test_gpu_check.py.
    "gpu_setting.context_is_dead",
    "gpu_steps.Command.__str__",
    "gpu_steps.lines_of.stop",
    "gpu_timing.one_line",
}
"""What a rehearsal cannot call."""
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

    def __init__(self, command: "Command", called: Path) -> None:
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.command = command
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
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
        status = 0
        try:
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
        (called / str(os.getpid())).write_text("\n".join(CALLED))
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    def poll(self) -> int | None:
        """The status, if it has ended."""
        if self.returncode is None:
            self._ended(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        """The status, when it has ended."""
        if self.returncode is None:
            self._ended(0)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, options: int) -> None:
        pid, status, used = os.wait4(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
            print(f"    {self.command} took {used.ru_utime + used.ru_stime:.1f} s of a core")


class Noting(SourceFileLoader):
    """Imports a module whose functions note that they were called, in CALLED, which all modules see as `_called`."""

    def get_code(self, fullname: str) -> CodeType:
        """The module's code, a statement longer in each function."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for function, name in functions(tree):
            call = ast.parse(f"_called.add({f'{Path(path).stem}.{name}'!r})").body
            place = int(ast.get_docstring(function) is not None)
            function.body[place:place] = call
        return compile(ast.fix_missing_locations(tree), path, "exec")


class NotingFinder(MetaPathFinder):
    """Finds the check's modules for Noting."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Its spec; None for every other module."""
        if not fullname.startswith("benchmarks.gpu_"):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = Noting(fullname, spec.origin)
        return spec


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[ast.FunctionDef, str]]:
    """Every function that does more than have a docstring, with its name and those of what it is in."""
    for node in ast.iter_child_nodes(tree):
        name = f"{inside}{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else inside
        if isinstance(node, ast.FunctionDef) and not (len(node.body) == 1 and ast.get_docstring(node)):
            yield node, name
        yield from functions(node, name if name == inside else f"{name}.")


def never_called(called: set[str]) -> list[str]:
    """Functions of the check that nothing called."""
    found = []
    for module in MODULES:
        tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
        names = {f"{module}.{name}" for _, name in functions(tree)}
        found += [f"{name} was never called" for name in sorted(names - called - GPU_ALONE)]
    return found


def rehearse(folder: Path) -> list[str]:
    """Run the plan; what is wrong, a sentence each."""
    from benchmarks import gpu_check, gpu_plan
    from benchmarks.gpu_table import table

    called = folder / "called"
    called.mkdir()
    about = {"gpu": "none: a rehearsal", "date": "rehearsal", "commit": "rehearsal", "capability": "none"}
    plan = gpu_plan.plan(folder / "made", 2)
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
    names = CALLED.union(*(path.read_text().splitlines() for path in called.iterdir()))
    return wrong + never_called(names)


def for_a_cpu(step: "Step", folder: Path) -> "Step":
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
    vars(builtins)["_called"] = CALLED  # where every module sees it
    sys.meta_path.insert(0, NotingFinder())
    from benchmarks.gpu_steps import REHEARSAL

    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as made:
        folder = Path(made)
        make_stand_ins(folder)
        os.environ |= {REHEARSAL: made, "TRITON_INTERPRET": "1", "CUDA_HOME": made, "OMP_NUM_THREADS": "1"}
        for name in ("av", "setuptools"):  # which are not where a GPU is, or in any version
            vars(sys)["modules"][name] = None  # which is how an import is forbidden
        from tests import emulator

        emulator.build()
        for name in (
            "triton",
            "tests.contract",
            "timecycle.kernels.topk_affinity_cuda",
            "timecycle.models.timecycle",
        ):
            importlib.import_module(name)
        wrong = rehearse(folder)
    if wrong:
        sys.exit("\n".join(["", f"error: {len(wrong)} things are wrong:", *wrong]))
    print("every step of make gpu-check has run")


if __name__ == "__main__":
    main()
