"""The whole plan of make gpu-check on a CPU, with tiny shapes: make gpu-rehearse.

The CUDA kernels run in the emulator, Triton's under its interpreter. ncu, compute-sanitizer and nvcc are replaced by
stubs that check their options and, where the real program is installed, ask it whether it accepts them. The rehearsal
fails if a step fails or reports nothing, if a prediction names something that is not measured, or if a function of
benchmarks/gpu_*.py was never called. Its results go to a temporary folder.

PyTorch and Triton are imported once: each command runs in a fork of this process instead of a new interpreter.
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
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # at run time these modules are imported only once get_code records their calls
    from benchmarks.gpu_steps import Command, Step

ROOT = Path(__file__).parents[1]
NOT_RECORDED = {"gpu_pytest", "gpu_rehearse", "gpu_speeds"}
"""Modules that do not run in a rehearsal's forks; gpu_pytest runs in pytest's processes, which fail without it."""
CALLED: set[str] = set()
"""Functions that were called in this process; see get_code."""
SLACK = 20  # a step's time limit, as a multiple of its limit on a GPU
GPU_ALONE = {
    # These ask the driver, or start a process in another way.
    "gpu_check.about",
    "gpu_check.main",
    "gpu_check.why_not",
    "gpu_sm80.of_ampere",
    "gpu_steps.Command.line",
    "gpu_steps.start",
    "gpu_timing._events",
    "gpu_timing._rounds",
    # These run in the process of the compute-sanitizer stub.
    "gpu_sanitizer.launch",
    "gpu_sanitizer.launch.enough",
    "gpu_sanitizer.shapes",
    # These are called on failures only, in tests/test_gpu_check.py.
    "gpu_setting.context_is_dead",
    "gpu_steps.Command.__str__",
    "gpu_steps.lines_of.stop",
    "gpu_timing.one_line",
}
"""Functions that a rehearsal cannot call."""
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
    """Write the stubs of the CUDA toolkit's programs."""
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
    """A command run in a fork of this process, with the attributes of subprocess.Popen that gpu_steps.py uses."""

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
        """The exit status, or None while the process runs."""
        if self.returncode is None:
            self._reap(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        """Wait for the process to end; returns its exit status."""
        if self.returncode is None:
            self._reap(0)
        assert self.returncode is not None
        return self.returncode

    def _reap(self, options: int) -> None:
        pid, status, used = os.wait4(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
            print(f"    {self.command} took {used.ru_utime + used.ru_stime:.1f} s of a core")


def get_code(loader: SourceFileLoader, fullname: str, original: Callable = SourceFileLoader.get_code) -> CodeType:
    """`SourceFileLoader.get_code`, which makes each function of benchmarks/gpu_*.py add its name to CALLED."""
    if not fullname.startswith("benchmarks.gpu_"):
        return original(loader, fullname)
    path = loader.get_filename(fullname)
    tree = ast.parse(loader.get_data(path))
    for function, name in functions(tree):
        call = ast.parse(f"_called.add({f'{Path(path).stem}.{name}'!r})").body
        place = int(ast.get_docstring(function) is not None)
        function.body[place:place] = call
    return compile(ast.fix_missing_locations(tree), path, "exec")


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[ast.FunctionDef, str]]:
    """Every function with a body beyond its docstring, and its qualified name."""
    for node in ast.iter_child_nodes(tree):
        name = f"{inside}{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else inside
        if isinstance(node, ast.FunctionDef) and not (len(node.body) == 1 and ast.get_docstring(node)):
            yield node, name
        yield from functions(node, name if name == inside else f"{name}.")


def never_called(called: set[str]) -> list[str]:
    """A sentence for each function of benchmarks/gpu_*.py that was not called."""
    paths = [path for path in (ROOT / "benchmarks").glob("gpu_*.py") if path.stem not in NOT_RECORDED]
    names = {f"{path.stem}.{name}" for path in paths for _, name in functions(ast.parse(path.read_text()))}
    return [f"{name} was never called" for name in sorted(names - called - GPU_ALONE)]


def rehearse(folder: Path) -> list[str]:
    """Run the plan; returns a sentence for each thing that is wrong."""
    from benchmarks import gpu_check, gpu_plan
    from benchmarks.gpu_table import table

    called = folder / "called"
    called.mkdir()
    about = {"gpu": "none: a rehearsal", "date": "rehearsal", "commit": "rehearsal", "capability": "none"}
    plan = gpu_plan.plan(folder / "made", 1)
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
    """A step with longer limits and at most two commands at a time, which builds nothing into the checkout."""
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
    """Rehearse; exits with status 1 if anything is wrong."""
    vars(builtins)["_called"] = CALLED  # so that every module sees it
    SourceFileLoader.get_code = get_code
    from benchmarks.gpu_steps import REHEARSAL

    with tempfile.TemporaryDirectory(prefix="gpu-rehearsal-") as made:
        folder = Path(made)
        make_stand_ins(folder)
        os.environ |= {REHEARSAL: made, "TRITON_INTERPRET": "1", "CUDA_HOME": made, "OMP_NUM_THREADS": "1"}
        for name in ("av", "setuptools"):  # a machine with a GPU may lack them, or have another version
            vars(sys)["modules"][name] = None  # an import then raises ImportError
        from tests import emulator, interpreter

        emulator.build()
        interpreter.speed_up()
        for name in ("tests.contract", "timecycle.kernels.topk_affinity_cuda", "timecycle.models.timecycle"):
            importlib.import_module(name)
        wrong = rehearse(folder)
    if wrong:
        sys.exit("\n".join(["", f"error: {len(wrong)} things are wrong:", *wrong]))
    print("every step of make gpu-check has run")


if __name__ == "__main__":
    main()
