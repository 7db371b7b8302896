"""make gpu-check, as far as a machine without a GPU can tell: what it says, writes and prints, and how it times."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks import gpu_cases, gpu_check, gpu_sequence, gpu_timing, gpu_training
from benchmarks.gpu_cases import Case, Video
from benchmarks.gpu_training import Attention, Learning
from timecycle.ops import Select
from timecycle.ops.selection import inside

CPU = torch.device("cpu")
TINY = Case(
    "tiny", "float32", Select(3, 0.5, "frame", "all"), 2, 5, 6, 2, 16, rivals=("eager", "finite check", "faiss")
)
ABOUT = {"gpu": "NVIDIA Made-up (x)", "date": "2026-01-02T0304Z", "commit": "abc1234-dirty"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(command_line, monkeypatch, tmp_path):
    found = command_line(gpu_check.main, "tests", "--results", tmp_path)
    assert found.code == 2
    assert found.err == "error: there is no GPU that PyTorch can use; make gpu-check needs one\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command_line(gpu_check.main).err.startswith("error: torch is not installed for ")


@pytest.fixture
def results(tmp_path: Path) -> gpu_check.Results:
    return gpu_check.Results(gpu_check.results_path(tmp_path, ABOUT), ABOUT)


def test_parts_that_fail_do_not_stop_the_others_and_lose_nothing(results, monkeypatch, capsys):
    def broken(seconds, save):
        save({"failed": [], "said": "half of it"})
        raise RuntimeError("no more")

    monkeypatch.setattr(gpu_check, "PARTS", {"build": broken, "tests": lambda seconds, save: save({"failed": []})})
    assert not gpu_check.run_parts(["build", "tests"], results)
    assert results.path.parts[-2:] == ("nvidia-made-up-x", "2026-01-02T0304Z-abc1234-dirty.json")
    parts = json.loads(results.path.read_text())["parts"]
    assert parts["build"]["failed"] == ["RuntimeError: no more"]
    assert parts["build"]["said"] == "half of it"
    assert parts["tests"]["failed"] == []
    assert gpu_check.run_parts(["tests"], results)


def test_the_table_is_short_and_complete():
    case = {"name": "crop", "us": 200.0, "share_of_dense": 0.7, "ratio_to": {"eager": 12.0}, "peak_mb": 9.0}
    ceilings = {"dense_tflops": {"bfloat16": 100.0}, "copy_tbs": 1.0}
    cases = [case | {"matrix_mb": 900.0}, {"name": "broken", "error": "OutOfMemoryError: no"}]
    form = {"us": 2500.0, "peak_mb": 70.0}
    training = [
        {"name": "step", "us": 2500.0, "ours": form, "plain": form | {"peak_mb": None}},
        {"name": "t", "error": "no"},
    ]
    parts = {
        "tests": {"passed": 3, "skipped": 1, "failed": ["a::b"], "not installed": ["c: av"], "seconds": 1.0},
        "benchmarks": {
            "ceilings": ceilings,
            "training": training,
            "cases": cases,
            "failed": ["broken: no"],
            "seconds": 2.0,
        },
        "sanitizer": {"failed": [], "said": "compute-sanitizer is not installed", "seconds": 0.0},
    }
    lines = gpu_check.table(ABOUT | {"parts": parts})
    assert lines[1:5] == [
        "tests: 3 passed, 1 skipped, 1 failed, 1.0 s",
        "    failed: a::b",
        "    not installed: c: av",
        "benchmarks: 1 failed, 2.0 s",
    ]
    assert "    compute-sanitizer is not installed" in lines
    assert "step: 2.50 ms, 70 MB; plain 2.50 ms" in lines
    assert lines[-1].split() == ["crop", "200.0", "70.0", "12.0", "9", "1.0"]
    assert gpu_check.table(ABOUT | {"parts": {}}) == [f"{ABOUT['gpu']}, {ABOUT['date']}, commit {ABOUT['commit']}"]


def test_a_command_is_read_to_its_end_and_stopped_in_time(capsys):
    assert list(gpu_check.lines_of([sys.executable, "-c", "print(1)"], 60)) == ["1", ""]
    assert list(gpu_check.lines_of([sys.executable, "-c", "raise SystemExit(3)"], 60)) == ["ended with status 3"]
    endless = "import time; print(1, flush=True); time.sleep(60)"
    assert list(gpu_check.lines_of([sys.executable, "-c", endless], 1))[-1] == "stopped after 1 s"


def test_a_report_of_pytest_is_read():
    xml = """<testsuites><testsuite>
        <testcase classname="tests.a" name="good"/>
        <testcase classname="tests.a" name="bad"><failure message="assert 1 == 2">text</failure></testcase>
        <testcase classname="tests.a" name="left"><skipped message="no"/></testcase>
        <testcase classname="" name="tests.b"><error message="collection failure">No module named 'av'</error>
        </testcase>
        <testcase classname="" name="tests.c"><error message="x">No module named 'timecycle.q'</error></testcase>
        </testsuite></testsuites>"""
    assert gpu_check.read_report(xml) == {
        "passed": 1,
        "skipped": 1,
        "failed": ["tests.a::bad: assert 1 == 2", "tests.c: x"],
        "not installed": ["tests.b: av"],
    }


@pytest.mark.parametrize("scope", ["frame", "joint"])
@pytest.mark.parametrize(("radius", "backward"), [(None, False), (2, False), (None, True)])
def test_a_case_is_checked_and_timed(scope, radius, backward):
    select = Select(3, 0.5, scope, "all" if scope == "frame" else "kept")
    others = ("forward",) if backward else TINY.rivals
    case = Case("tiny", "float32", select, 2, 12, 6, 2, 16, radius, others, backward)
    found = gpu_cases.run_case(case, CPU, {"float32": 1.0})
    assert found["us"] > 0
    assert found["peak_mb"] is None
    assert set(found["ratio_to"]) == set(others) - {"faiss"}
    assert all("error" not in rival for rival in found["rivals"].values())


@pytest.mark.parametrize("part", [0, 1], ids=["weights", "indices"])
def test_a_case_that_computes_wrongly_is_not_timed(part, monkeypatch):
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
    right = gpu_training.attend
    monkeypatch.setattr(gpu_training, "attend", lambda *x, backend, **y: _off(right(*x, backend=backend, **y), backend))
    with pytest.raises(AssertionError):
        list(gpu_training.run_attention(case, CPU))


def _off(results: tuple[torch.Tensor, ...], backend: str | None) -> tuple[torch.Tensor, ...]:
    return results if backend == "reference" else (results[0] * 1.1, results[1])


@pytest.mark.parametrize("whole", [False, True], ids=["losses", "step"])
def test_learning_is_compared_with_the_plain_form_and_timed(whole, monkeypatch):
    case = Learning("tiny", whole, 1, 64, 56, 1, "float32")
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
        assert case.pairs == 3 * int(inside(width, case.region.reach(), height * width, CPU).sum())
    assert TINY.operations == 2 * 2 * 30 * 30 * 16


def test_videos_are_the_frames_before_each_target():
    video = Video.random(TINY, 0, CPU)
    assert video.frames.tolist() == [[0, 1], [1, 2]]
    assert torch.equal(video.bank[2:], video.query)
    torch.testing.assert_close(video.bank.norm(dim=2), torch.ones(4, 30))


def test_every_case_is_named_once():
    names = [case.title for case in gpu_cases.cases()]
    assert len(set(names)) == len(names)


def test_ceilings_are_measured():
    assert gpu_timing.dense_tflops("float32", CPU, 64) >= 0
    assert gpu_timing.copy_tbs(CPU, 1 << 10) >= 0


def test_figures_are_saved_as_they_come(monkeypatch, capsys):
    lines = [
        '{"ceilings": {"copy_tbs": 1.0}}',
        '{"sequence": {"name": "s", "us": 2.0}}',
        '{"training": {"name": "t", "error": "no"}}',
        "a warning",
        '{"name": "a", "us": 1.0}',
        '{"name": "b", "error": "no"}',
    ]
    monkeypatch.setattr(gpu_check, "lines_of", lambda *_: iter([*lines, "stopped after 9 s"]))
    saved: list[str] = []
    gpu_check.benchmarks(9, lambda outcome: saved.append(json.dumps(outcome)))
    assert [len(json.loads(outcome)["cases"]) for outcome in saved] == [0, 0, 0, 1, 2, 2]
    last = json.loads(saved[-1])
    assert last["ceilings"] == {"copy_tbs": 1.0}
    assert last["sequence"] == {"name": "s", "us": 2.0}
    assert last["training"] == [{"name": "t", "error": "no"}]
    assert last["failed"] == ["t: no", "b: no", "stopped after 9 s"]


def test_the_sanitizers_findings_are_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "fill_kernel_cache", lambda seconds: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    saved: list[dict] = []
    gpu_check.sanitizer(60, saved.append)
    assert saved[-1] == {"failed": [], "said": "compute-sanitizer is not installed"}
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "========= $@"\ncase "$@" in *racecheck*) exit 1;; esac\n')
    program.chmod(0o755)
    gpu_check.sanitizer(60, saved.append)
    assert saved[-1]["failed"] == ["racecheck ended with status 1"]
    assert "--tool memcheck" in saved[-1]["memcheck"][0]


def test_tests_that_pass_fail_and_never_end_are_told_apart(tmp_path, capsys):
    file, saved = tmp_path / "test_some.py", []
    file.write_text("import time\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    gpu_check.run_pytest(60, saved.append, (str(file),))
    assert saved[-1]["passed"] == 1
    assert [failure.split(": ")[0].split("::")[1] for failure in saved[-1]["failed"]] == ["test_bad"]
    file.write_text("import time\ndef test_endless(): time.sleep(60)\n")
    gpu_check.run_pytest(3, saved.append, (str(file),))
    assert saved[-1]["failed"] == ["pytest stopped after 3 s"]
