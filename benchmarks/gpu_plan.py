"""What make gpu-check runs: four parts, each useful alone, and each within its time.

A part begins on a machine that has nothing of an earlier one, so that each builds what it needs. Within a part those
steps come first that the others' worth depends on.
"""

from pathlib import Path

from benchmarks.gpu_steps import Command, Step

LIMITS = {"first": 200.0, "second": 270.0, "third": 330.0, "fourth": 240.0}
"""Seconds of a part; those of its steps add up to no more."""
SMOKE_SECONDS = 20.0
BUILD = "csrc/cuda/build.py"
GPU_TESTS = (
    "tests/test_gpu*.py",
    "tests/test_kernels.py",
    "tests/test_cuda_kernels.py",
    "tests/test_propagate_sequence.py",
    "tests/test_traced.py",
)
SMOKES = (  # benchmarks/gpu_smoke.py's, which imports too much to ask
    "cuda, one patch",
    "cuda, crop 480",
    "cuda, streamed",
    "cuda, neighborhood",
    "cuda, labels through a video",
    "triton, one patch",
    "triton, crop 480",
)


def plan(made: Path, workers: int) -> dict[str, tuple[Step, ...]]:
    """The steps of each part.

    made: where the sm_80 module goes; workers: how many processes compile or test side by side.
    """
    installed = Command(BUILD, ("--chips", "sm_90a"))
    ampere = made / "_cuda_sm80.so"

    def cases(group: str, seconds: float) -> Command:
        return Command("gpu_cases", (group,), seconds)

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
        Step(
            "build",
            40,
            (installed, Command(BUILD, ("--chips", "compute_80", "--out", str(ampere)))),
            at_once=2,
        ),
        Step("sm_80", 70, (Command("gpu_sm80", (str(ampere),)),)),
        Step("tests", 115, (tests(*GPU_TESTS),)),
        Step("training", 45, (Command("gpu_training"),)),
    )
    third = (
        Step("build", 45, (installed, *warming), at_once=workers + 1),
        Step(
            "cases",
            230,
            (
                cases("gradients", 35),
                cases("precisions", 30),
                cases("sequence", 20),
                cases("ceilings", 20),
                cases("rivals", 45),
                cases("regions", 25),
                cases("1080p", 25),
                cases("joint", 50),
            ),
        ),
        Step("evaluator", 55, (Command("gpu_evaluator"),)),
    )
    fourth = (
        Step("build", 60, (installed,)),
        Step("sanitizer", 130, tuple(Command("gpu_sanitizer", (tool,), 75) for tool in ("memcheck", "racecheck"))),
        Step("training's choices", 50, (Command("gpu_choices"),)),
    )
    return {"first": first, "second": second, "third": third, "fourth": fourth}


def build_folder() -> Path:
    """Where modules lie that are not installed."""
    return Path("build") / "gpu-check"  # of the repository, where programs run
