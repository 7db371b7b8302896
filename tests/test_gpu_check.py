"""make gpu-check without a GPU: its messages, results files, table and timing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from benchmarks import (
    gpu_cases,
    gpu_check,
    gpu_headline,
    gpu_ncu,
    gpu_plan,
    gpu_pytest,
    gpu_sequence,
    gpu_setting,
    gpu_smoke,
    gpu_steps,
    gpu_tests,
    gpu_timing,
    gpu_training,
)
from benchmarks.gpu_cases import Case, Video
from benchmarks.gpu_steps import Command, Step
from benchmarks.gpu_table import table
from benchmarks.gpu_training import Attention, Learning
from timecycle.ops import Select
from timecycle.ops.selection import inside

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TINY = Case(
    "tiny", "float32", Select(3, 0.5, "frame", "all"), 2, 5, 6, 2, 16, rivals=("eager", "finite check", "faiss")
)
ABOUT = {"gpu": "NVIDIA Made-up (x)", "date": "2026-01-02T0304Z", "commit": "abc1234-dirty"}


@pytest.mark.gpu_sim
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_whole_plan_runs_without_a_gpu():
    """`make gpu-rehearse` runs every step and every function of the check."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_rehearse"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "every step of make gpu-check has run" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_and_writes_nothing(command_line, monkeypatch, tmp_path):
    found = command_line(gpu_check.main, "first", "--results", tmp_path)
    assert found.code == 2
    assert found.err == "error: there is no GPU that PyTorch can use; make gpu-check needs one\n"
    assert list(tmp_path.iterdir()) == []
    found = command_line(gpu_smoke.main, gpu_smoke.NAMES[0])
    assert found.err == "error: there is no GPU that PyTorch can use; make gpu-check needs one\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command_line(gpu_check.main, "first").err.startswith("error: torch is not installed for ")


def test_the_emulator_is_refused_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_setting, "TINY", True)
    with pytest.raises(gpu_setting.InputError, match="there is a GPU; expected make gpu-check"):
        gpu_setting.device()


def test_parts_are_within_their_time_limits_and_name_existing_checks():
    for part, steps in gpu_plan.plan(Path("made"), 14).items():
        assert sum(step.seconds for step in steps) <= gpu_plan.LIMITS[part]
    assert set(gpu_plan.SMOKES) == set(gpu_smoke.NAMES)


@pytest.fixture
def results(tmp_path: Path) -> gpu_check.Results:
    return gpu_check.Results(gpu_check.results_path(tmp_path, ABOUT, "first"), ABOUT)


def test_results_go_to_out_or_a_folder_of_the_gpu(monkeypatch, tmp_path):
    monkeypatch.delenv("OUT", raising=False)
    name = "2026-01-02T0304Z-abc1234-dirty-first.json"
    assert gpu_check.results_path(tmp_path, ABOUT, "first") == tmp_path / "nvidia-made-up-x" / name
    assert gpu_check.results_path(None, ABOUT, "first").parts[-4:-1] == ("benchmarks", "results", "nvidia-made-up-x")
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_check.results_path(None, ABOUT, "first") == tmp_path / f"nvidia-made-up-x-{name}"


@pytest.fixture
def program(tmp_path: Path):
    """A command that runs some Python."""

    def make(name: str, text: str, seconds: float = 60) -> Command:
        (tmp_path / f"{name}.py").write_text(text)
        return Command(str(tmp_path / f"{name}.py"), (), seconds)

    return make


@pytest.mark.gpu_sim
def test_failing_hanging_and_silent_programs_do_not_affect_others(results, program, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "missing", lambda: ["x is not installed"])
    said = "import json, time; print(json.dumps({{'name': {0!r}, 'us': 1.0}}), flush=True);"
    hanging = said.format("b") + "time.sleep(60)"
    steps = [
        Step("one", 30, (program("good", said.format("a") + "print('more')"), program("silent", "print('{not')")), 2),
        Step("two", 30, (program("hangs", hanging, 4), program("dies", "raise OSError(3)"))),
        Step("three", 30, (program("wrong", 'print(\'{"name": "c", "error": "E: no"}\')'),)),
    ]
    assert not gpu_check.run_part("first", steps, results)
    written = json.loads(results.path.read_text())["parts"]["first"]
    assert written["packages"]["failed"] == ["x is not installed"]
    assert written["one"]["figures"] == [{"name": "a", "us": 1.0}]
    assert [failure.split("/")[-1] for failure in written["one"]["failed"]] == ["silent.py found out nothing: {not"]
    assert written["two"]["figures"] == [{"name": "b", "us": 1.0}]
    hung, died = written["two"]["failed"]
    assert "hangs.py stopped after 4 s" in hung
    assert "dies.py ended with status 1" in died
    assert "OSError: 3" in died
    assert written["three"]["failed"] == ["c: E: no"]
    assert "FAILED c: E: no" in capsys.readouterr().out


def test_a_step_starts_no_program_after_its_time_limit(program, capsys):
    steps = Step("s", 60, (program("slow", "import time; time.sleep(60)"), program("late", "print(1)")))
    outcome = gpu_steps.run_step(steps, 2, lambda _: None)
    assert "slow.py stopped after 2 s" in outcome["failed"][0]
    assert "late.py: not started, the time of s is over" in outcome["failed"][1]


def test_a_step_is_saved_after_every_result(program, capsys):
    saved: list[str] = []
    text = 'print(\'{"name": "a"}\'); print(\'{"name": "b"}\')'
    predictions = {"b": {"us": {"expected": [1, 2]}}}
    gpu_steps.run_step(
        Step("s", 60, (program("two", text),)), 60, lambda x: saved.append(json.dumps(x)), predictions=predictions
    )
    assert [len(json.loads(outcome)["figures"]) for outcome in saved] == [1, 2, 2]
    assert json.loads(saved[-1])["figures"][1]["predicted"] == predictions["b"]


def test_an_error_is_printed_and_ends_a_process_with_a_dead_context(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no  more")

    gpu_setting.attempt("a", broken)
    gpu_setting.attempt("b", lambda: {"us": 1})
    monkeypatch.setattr(gpu_setting, "context_is_dead", lambda: True)
    with pytest.raises(SystemExit) as ending:
        gpu_setting.attempt("c", broken)
    assert ending.value.code == gpu_setting.CANNOT_GO_ON
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"name": "a", "error": "RuntimeError: no more"}, {"name": "b", "us": 1}, lines[2]]


def test_a_context_that_raises_is_dead(monkeypatch):
    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    assert gpu_setting.context_is_dead()


def test_uninitialized_memory_is_nan():
    with gpu_setting.poisoned():
        assert torch.empty(5).isnan().all()


def test_a_wrong_smoke_test_is_an_error(monkeypatch):
    right = gpu_smoke.contract.topk_affinity

    def wrong(*arguments, backend, **options):
        weights, indices = right(*arguments, backend="reference", **options)
        return (weights.float(), indices if backend == "reference" else indices + 1)

    monkeypatch.setattr(gpu_smoke.contract, "topk_affinity", wrong)
    with pytest.raises(AssertionError):
        gpu_smoke.smaller(gpu_smoke.CROP).check()


@pytest.mark.gpu_sim
def test_hanging_and_dying_tests_do_not_affect_others(tmp_path, capfd):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import os, time\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\ndef test_endless(): time.sleep(600)\n"
        "def test_dead(): os._exit(7)\ndef test_last(): pass\n"
    )
    gpu_tests.run_share([str(file)], 0, 1, 5)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    outcomes = {line["name"].split("::")[1]: line for line in lines}
    assert [line["outcome"] for line in lines] == ["passed", "failed", "failed", "failed", "passed"]
    assert outcomes["test_bad"]["error"] == "assert 1 == 2"
    assert outcomes["test_endless"]["error"] == "stopped after 5 s"
    assert outcomes["test_dead"]["error"] == "its process ended with status 7"


def test_every_test_is_in_one_share():
    shares = []
    for first in range(3):
        options = {"--one-each": False, "--share": (first, 3, 0)}
        items = list(range(8))
        gpu_pytest.pytest_collection_modifyitems(SimpleNamespace(getoption=options.get), items)
        shares += items
    assert sorted(shares) == list(range(8))


@pytest.mark.gpu_sim
def test_a_file_that_cannot_be_imported_is_a_failure(tmp_path, capfd):
    file = tmp_path / "test_some.py"
    file.write_text("import nobody_has_this\n")
    gpu_tests.run_share([str(file)], 0, 1, 60)
    (line,) = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert line["error"] == "ModuleNotFoundError: No module named 'nobody_has_this'"


def test_the_table_of_ncu_is_read():
    source = ROOT / "csrc" / "cuda" / "topk_affinity_sm90.cu"
    assert f"\n{gpu_ncu.KERNEL}(" in source.read_text()  # else ncu would measure nothing
    said = (
        '==PROF== Connected\n"ID","Kernel Name","launch__registers_per_thread","x"\n"","","register/thread",""\n'
        '"0","scan_sm90","168","1"\n'
    )
    assert gpu_ncu.metrics(said) == {"Kernel Name": "scan_sm90", "launch__registers_per_thread": "168 register/thread"}
    with pytest.raises(ValueError, match="measured no launch of scan_sm90: ==WARNING== No kernels"):
        gpu_ncu.metrics("==WARNING== No kernels were profiled.\n")


def test_the_kernel_alone_gets_the_arguments_of_the_call(monkeypatch):
    seen = []

    class Module:
        best_of_groups = staticmethod(lambda *arguments, **options: seen.append((arguments, options)))

    monkeypatch.setattr(gpu_headline.importlib, "import_module", lambda name: Module)
    monkeypatch.setattr(gpu_headline, "forward", lambda case, video: [Module.best_of_groups(i, k=2) for i in (1, 3)])
    launch = Module.best_of_groups
    run = gpu_headline.kernel_alone(TINY, Video.random(TINY, 0, CPU))
    assert Module.best_of_groups is launch
    run()
    assert seen == [((1,), {"k": 2}), ((3,), {"k": 2})] * 2


def test_the_product_is_of_every_target_with_its_keys():
    video, products = Video.random(TINY, 0, CPU), []
    mm = torch.mm

    def keep(query, bank, out):
        products.append(mm(query, bank, out=out).clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", keep)
        gpu_headline.matrix_product(TINY, video)()
    for b, product in enumerate(products):
        expected = torch.einsum("nd,tmd->ntm", video.query[b], video.bank[b : b + 2]).flatten(1)
        torch.testing.assert_close(product, expected)
    assert len(products) == TINY.targets


def test_the_table_is_short_and_complete():
    times = {"kernel_us": 150.0, "mm_us": 120.0, "call_us": 200.0, "call_without_the_host_us": 160.0}
    predicted = {"call_us": {"expected": [190, 235], "goal": 180}}
    case = {"name": "crop", "us": 200.0, "share_of_dense": 0.7, "ratio_to": {"eager": 12.0}, "peak_mb": 9.0}
    form = {"us": 2500.0, "peak_mb": 70.0}
    figures = [
        {"name": "headline cuda, B = 1", "kernel_share_of_mm": 0.8, "predicted": predicted, **times},
        {"name": "headline plain, B = 1", "eager_us": 900.0},
        {"name": "ceilings", "dense_tflops": {"bfloat16": 100.0}, "copy_tbs": 1.0},
        {"name": "step", "us": 2500.0, "ours": form, "plain": form | {"peak_mb": None}},
        {"name": "evaluator", "images_per_second": 30.0, "J&F": 0.5},
        case | {"matrix_mb": 900.0},
        {"name": "broken", "error": "no"},
    ]
    tests = [{"name": "a::b", "outcome": outcome} for outcome in ("passed", "passed", "skipped", "failed")]
    steps = {
        "tests": {"figures": tests, "failed": ["a::b: " + 500 * "x"] * 17, "seconds": 1.0},
        "cases": {"figures": figures, "failed": ["broken: no"], "seconds": 2.0},
    }
    lines = table(ABOUT | {"parts": {"first": steps}})
    assert lines[1] == "first, tests: 2 tests passed, 1 skipped, 17 failed, 1.0 s"
    assert len(lines[2]) < 330
    assert lines[17:20] == ["    and 2 more", "first, cases: 7 found out, 1 failed, 2.0 s", "    failed: broken: no"]
    assert lines[20] == "headline cuda, B = 1: call_us 200.0, expected 190 to 235, goal 180"
    assert lines[22].split()[-6:] == ["150.0", "120.0", "80.0", "200.0", "160.0", "900.0"]
    assert "dense products, TFLOP/s: bfloat16 100; copy 1.00 TB/s" in lines
    assert "step: 2.50 ms, 70 MB; plain 2.50 ms" in lines
    assert "evaluator: 30.0 images per second, J&F 0.5" in lines
    assert lines[-1].split() == ["crop", "200.0", "70.0", "12.0", "9", "1.0"]
    assert table(ABOUT | {"parts": {}}) == [f"{ABOUT['gpu']}, {ABOUT['date']}, commit {ABOUT['commit']}"]


@pytest.mark.parametrize("scope", ["frame", "joint"])
@pytest.mark.parametrize(("radius", "backward"), [(None, False), (2, False), (None, True)])
def test_a_case_is_checked_and_timed(scope, radius, backward):
    select = Select(3, 0.5, scope, "all" if scope == "frame" else "topk")
    others = ("forward",) if backward else TINY.rivals
    case = Case("tiny", "float32", select, 2, 12, 6, 2, 16, radius, others, backward)
    found = gpu_cases.run_case(case, CPU, {"float32": 1.0})
    assert found["us"] > 0
    assert found["peak_mb"] is None
    assert set(found["ratio_to"]) == set(others) - {"faiss"}
    assert all("error" not in rival for rival in found["rivals"].values())


@pytest.mark.parametrize("part", [0, 1], ids=["weights", "indices"])
def test_a_case_with_wrong_results_is_not_timed(part, monkeypatch):
    right = gpu_cases.forward

    def wrong(*arguments, **options):
        found = list(right(*arguments, **options))
        found[part] = found[part] * 2 + 1
        return found

    monkeypatch.setattr(gpu_cases, "forward", wrong)
    for case in (TINY, Case("tiny", "float32", TINY.select, 1, 12, 6, 2, 16, 2)):
        with pytest.raises(AssertionError):
            gpu_cases.run_case(case, CPU, {"float32": 1.0})


def test_a_video_is_checked_and_timed_and_wrong_labels_are_not(monkeypatch):
    found = gpu_sequence.run_sequence(CPU, 3, 30, 2, 3, 2)
    assert found["us"] > 0
    assert found["frame by frame"]["us"] > 0
    arguments = gpu_sequence.video(CPU, 3, 30, 2, 3, 2)
    torch.testing.assert_close(
        gpu_sequence.frame_by_frame(*arguments), gpu_sequence.propagate_sequence(*arguments, rescale=True)
    )
    right = gpu_sequence.propagate_sequence

    def wrong(weights, *rest, **options):
        labels = right(weights, *rest, **options)
        return labels if weights.dtype == torch.float64 else labels + 0.1

    monkeypatch.setattr(gpu_sequence, "propagate_sequence", wrong)
    with pytest.raises(AssertionError):
        gpu_sequence.run_sequence(CPU, 3, 30, 2, 3, 2)


ATTENTIONS = [Attention("tiny", "float32", 2, 64, 9, 4, 5, 8), Attention("tiny", "bfloat16", 2, 5, 6, 4, 6, None)]


@pytest.mark.parametrize("case", ATTENTIONS, ids=["a convolution", "a chain"])
def test_attend_is_checked_and_timed_and_wrong_output_is_not(case, monkeypatch):
    found = list(gpu_training.run_attention(case, CPU))
    assert [figure["name"].split(", ")[-1] for figure in found] == ["forward", "backward"]
    assert all(figure[form]["us"] > 0 for figure in found for form in ("ours", "plain"))
    inputs = [x.double() for x in case.inputs(0, CPU)]
    out, plain = case.run(*inputs)[0], case.plain(*inputs)
    if case.side is None:
        torch.testing.assert_close(out, plain)
    else:  # rows that begin in one row of the grid and end in the next are not the convolution's
        torch.testing.assert_close(
            functional.pad(out, (0, 0, 0, 3)).unflatten(1, (5, 8))[:, :, :5].permute(0, 3, 1, 2), plain
        )
    right = gpu_training.attention
    monkeypatch.setattr(
        gpu_training, "attention", lambda *x, backend, **y: _off(right(*x, backend=backend, **y), backend)
    )
    with pytest.raises(AssertionError):
        list(gpu_training.run_attention(case, CPU))


def _off(results: tuple[torch.Tensor, ...], backend: str | None) -> tuple[torch.Tensor, ...]:
    return results if backend == "reference" else (results[0] * 1.1, results[1])


def test_learning_is_compared_with_the_plain_form_and_timed(monkeypatch):
    case = Learning("tiny", False, 1, 64, 56, 1, "float32")  # the whole step is rehearsed
    (found,) = gpu_training.run_learning(case, CPU)
    assert found["us"] == found["ours"]["us"] > 0
    assert found["plain"]["us"] > 0
    monkeypatch.setattr(gpu_training.plain_training, "grid_loss", lambda *_: torch.ones(()))
    with pytest.raises(AssertionError):
        list(gpu_training.run_learning(case, CPU))


def test_training_that_fails_is_an_error_and_the_others_run(monkeypatch):
    broken = Attention("broken", "float32", 1, 1, 1, 0, 1, 10)
    monkeypatch.setattr(gpu_training, "cases", lambda: [broken, ATTENTIONS[0]])
    found = list(gpu_training.run(CPU))
    assert ["error" in figure for figure in found] == [True, False, False]


def test_pairs_are_those_inside_the_region():
    for height, width, radius in ((5, 6, 2), (12, 7, 3), (4, 9, 30)):
        case = Case("tiny", "float32", TINY.select, 1, height, width, 3, 4, radius)
        assert case.pairs == 3 * int(inside(width, case.neighborhood.half_widths(), height * width, CPU).sum())
    assert TINY.operations == 2 * 2 * 30 * 30 * 16


def test_videos_are_the_frames_before_each_target():
    video = Video.random(TINY, 0, CPU)
    assert video.frames.tolist() == [[0, 1], [1, 2]]
    assert torch.equal(video.bank[2:], video.query)
    torch.testing.assert_close(video.bank.norm(dim=2), torch.ones(4, 30))


def test_titles_of_cases_are_unique():
    names = [case.title for cases in gpu_cases.groups().values() for case in cases]
    assert len(set(names)) == len(names)


def test_ceilings_are_measured():
    assert gpu_timing.dense_tflops("float32", CPU, 64) >= 0
    assert gpu_timing.copy_tbs(CPU, 1 << 10) >= 0
