"""What make gpu-check runs: four parts, each useful alone and each within its time limit.

Every part builds what it needs, since it may start on a fresh machine. Within a part the most important steps come
first.
"""

from pathlib import Path

from benchmarks.gpu_steps import Command, Step

LIMITS = {"first": 200.0, "second": 270.0, "third": 330.0, "fourth": 240.0}
"""Seconds per part; those of its steps add up to no more."""
SMOKE_SECONDS = 20.0
BUILD = "csrc/cuda/build.py"
BUILD_FOLDER = Path("build") / "gpu-check"
"""For modules that are not installed; relative to the repository, where programs run."""
GPU_TESTS = (
    "tests/test_gpu*.py",
    "tests/test_kernels.py",
    "tests/test_cuda_kernels.py",
    "tests/test_propagate_sequence.py",
    "tests/test_traced.py",
)
SMOKES = (  # the names of benchmarks/gpu_smoke.py, which this module does not import: it needs more packages
    "cuda, one patch",
    "cuda, crop 480",
    "cuda, streamed",
    "cuda, neighborhood",
    "cuda, labels through a video",
    "triton, one patch",
    "triton, crop 480",
)
CASES = {
    "gradients": 35,
    "precisions": 30,
    "sequence": 20,
    "ceilings": 20,
    "rivals": 45,
    "regions": 25,
    "1080p": 25,
    "joint": 50,
}
"""Groups of benchmarks/gpu_cases.py, and the seconds of each."""


def plan(made: Path, workers: int) -> dict[str, tuple[Step, ...]]:
    """The steps of each part.

    made: folder for the sm_80 module; workers: number of processes that compile or test in parallel.
    """
    installed = Command(BUILD, ("--chips", "sm_90a"))
    ampere = made / "_cuda_sm80.so"

    def tests(*files: str) -> Command:
        return Command("gpu_tests", (*files, "--workers", str(workers), "--without", "tests/test_gpu_check.py"))

    warming = tuple(Command("gpu_cases", ("--warm", str(i), str(workers))) for i in range(workers))
    first = (
        Step(
            "build",
            60,
            (
                installed,
                *(Command("gpu_headline", ("triton", "--warm", k)) for k in ("5", "20")),
                *(Command("gpu_smoke", (name, "--warm")) for name in SMOKES if name.startswith("triton")),
            ),
            at_once=workers + 2,
        ),
        Step("smoke", 25, tuple(Command("gpu_smoke", (name,), SMOKE_SECONDS) for name in SMOKES), len(SMOKES)),
        Step("headline", 55, tuple(Command("gpu_headline", (who,), 35) for who in ("cuda", "triton", "plain"))),
        Step("ncu", 25, (Command("gpu_ncu"),)),
        Step("CUDA tests", 35, (tests("tests/test_cuda_kernels.py"),)),
    )
    second = (
        Step("build", 40, (installed, Command(BUILD, ("--chips", "compute_80", "--out", str(ampere)))), at_once=2),
        Step("sm_80", 70, (Command("gpu_sm80", (str(ampere),)),)),
        Step("tests", 115, (tests(*GPU_TESTS),)),
        Step("training", 45, (Command("gpu_training"),)),
    )
    third = (
        Step("build", 45, (installed, *warming), at_once=workers + 1),
        Step("cases", 230, tuple(Command("gpu_cases", (group,), seconds) for group, seconds in CASES.items())),
        Step("evaluator", 55, (Command("gpu_evaluator"),)),
    )
    fourth = (
        Step("build", 60, (installed,)),
        Step("sanitizer", 130, tuple(Command("gpu_sanitizer", (tool,), 75) for tool in ("memcheck", "racecheck"))),
        Step("training's choices", 50, (Command("gpu_choices"),)),
    )
    return {"first": first, "second": second, "third": third, "fourth": fourth}
