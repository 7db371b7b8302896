"""`timecycle doctor`: the facts, the page, and what is broken or missing."""

import importlib.util
import json
import sys
import types

import pytest

from timecycle import cli, doctor, native, ops
from timecycle.ops import backends as modules
from timecycle.version import __version__


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The speed is measured at a small crop."""
    monkeypatch.setattr(doctor, "CROP", 64)


@pytest.fixture
def run(command_line, monkeypatch):
    """Run `timecycle doctor` at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *words: command_line(lambda: cli.run(sys.argv[1:]), "doctor", *words)


@pytest.fixture
def spec_of_kernels(monkeypatch):
    """Claim that the compiled module's file is there, or not."""
    found = importlib.util.find_spec

    def claim(there: bool) -> None:
        spec = types.SimpleNamespace() if there else None
        monkeypatch.setattr(
            doctor.importlib.util, "find_spec", lambda name: spec if name == "timecycle._C" else found(name)
        )

    return claim


def test_the_facts_are_json_and_name_every_backend(run):
    done = run("--json", "--quiet")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["timecycle"]["version"] == __version__
    assert found["problems"] == []
    for state in ops.backends():
        entry = found["operators"][state.operator]
        if state.ready:
            assert state.backend not in entry["not"]
            assert state.backend in entry["gpu"] or entry["cpu"] is not None
        else:
            assert entry["not"][state.backend] == state.reason
    (test, *_), (speed, *_) = found["self-test"], found["speed"]
    assert test["passed"]
    assert test["difference"] <= test["most"]
    assert speed["crop"] == 64
    assert speed["davis 2017 val"] == pytest.approx(1999 * (speed["encode"] + speed["propagate"]), rel=0.1, abs=0.3)


def test_the_page_fits_80_columns_and_ends_in_the_verdict(run):
    done = run()
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[-1].startswith("everything works")
    facts = lines[: next((i for i, line in enumerate(lines) if line == "to add:"), len(lines))]
    # A path is not broken.
    assert [line for line in facts if len(line) > 80 and len(line.split()) > 1] == []
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][1:-1] == [
        "timecycle", "python", "machine", "gpu", "images", "kernels", "weights", "operators", "self-test", "speed",
        *(["to"] if "to add:" in lines else []),
    ]  # fmt: skip


def test_kernels_that_compute_something_else_are_broken(run, monkeypatch):
    reference = next(each for each in modules._REGISTERED["affinity_propagate"] if each.name == "reference")
    wrong = modules.Backend("cpu", None, lambda *_: None, lambda *given: reference.run(*given) * 0)
    monkeypatch.setitem(modules._REGISTERED, "affinity_propagate", (wrong, reference))
    done = run()
    assert done.code == 1
    assert "are not the reference's" in done.out
    assert "cpu: labels differ from the reference's by " in done.out
    assert done.out.splitlines()[-1] == "something is broken: see the lines above for what to do"


def test_kernels_that_cannot_be_loaded_are_broken(run, monkeypatch, spec_of_kernels):
    spec_of_kernels(True)
    reason = native.why_missing(ImportError("undefined symbol: _ZN3c10"))
    monkeypatch.setattr(modules, "NATIVE", None)
    monkeypatch.setattr(modules, "NATIVE_MISSING", reason)
    done = run()
    assert done.code == 1
    assert f"  {reason}\n" in done.out  # with the command that builds them, in one line
    assert "C++: built, not used: " in done.out
    assert "self-test" not in done.out


def test_kernels_that_are_not_built_are_advice(run, monkeypatch, spec_of_kernels):
    spec_of_kernels(False)
    reason = native.why_missing(ModuleNotFoundError("No module named 'timecycle._C'"))
    monkeypatch.setattr(modules, "NATIVE", None)
    monkeypatch.setattr(modules, "NATIVE_MISSING", reason)
    for operator, candidates in modules._REGISTERED.items():
        others = tuple(each for each in candidates if each.name != "cpu")
        monkeypatch.setitem(modules._REGISTERED, operator, others)
    done = run()
    assert done.code == 0
    assert "C++: not built" in done.out
    assert "affinity_propagate        reference" in done.out
    assert f"  for speed: {reason}\n" in done.out
    assert done.out.splitlines()[-1] == "everything works; what is listed above may be added"


def test_packages_that_are_missing_are_advice(run, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "av" else version(name))
    done = run()
    assert done.code == 0
    assert "av: not installed (reading and writing video files)" in done.out
    assert "  for reading and writing video files: pip install av\n" in done.out


def test_without_torch_the_rest_is_told(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run()
    assert done.code == 1
    assert f"timecycle  {__version__}" in done.out
    assert "PyTorch cannot be imported (" in done.out
    assert "pip install 'torch>=2.11'" in done.out


def test_a_limit_of_pixels_that_is_no_number_is_broken(run, monkeypatch):
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", "many")
    done = run()
    assert done.code == 1
    assert "TIMECYCLE_MAX_PIXELS is 'many'; expected a number of pixels" in done.out


def test_missing_weights_are_broken(run, monkeypatch, tmp_path):
    monkeypatch.setattr("timecycle.features.named.SHIPPED", tmp_path / "walk.safetensors")
    done = run()
    assert done.code == 1
    assert "walk.safetensors does not exist; expected the shipped weights" in done.out


def test_with_a_gpu_both_devices_are_told():
    """The page alone; the facts are made up."""
    machine = {"threads": 4, "instructions": "AVX2", "gpus": ["A chip"], "no gpu": None}
    found = {
        "timecycle": {"version": "1", "commit": None, "installed": "installed in x"},
        "python": "3.11", "platform": "Linux", "packages": {"av": "1", "triton": "3", "tensorboard": "2"},
        "torch": {"version": "2", "cuda": "13", "hip": None}, "machine": machine, "most pixels": 10,
        "modules": {"C++": {"built": True, "built for torch": "2", "reason": None},
                    "CUDA": {"built": True, "built for torch": None, "reason": None}},
        "weights": {"file": "w", "bytes": 1_400_000},
        "operators": {"topk_affinity": {"cpu": "cpu", "gpu": ["cuda", "triton"], "not": {}}},
        "self-test": [], "speed": [], "problems": [], "advice": [],
    }  # fmt: skip
    lines = doctor.report(found).splitlines()
    assert "gpu        A chip" in lines
    assert "kernels    C++: built for torch 2" in lines
    assert "operators  topk_affinity             cpu; GPU: cuda, triton" in lines
    assert lines[-1] == "everything works"
