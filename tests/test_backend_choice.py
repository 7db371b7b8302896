"""The choice of GPU backends: what the CUDA kernels do not support, and the table of measured speeds."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_speeds
from timecycle.errors import InputError
from timecycle.ops import Select, backends, speeds, topk_affinity
from timecycle.ops.problem import Problem
from timecycle.ops.topk_affinity import slower_than_triton, why_not_cuda

HALF = torch.zeros(1, 4, 8, dtype=torch.bfloat16)
FRAMES = torch.tensor([[0, -1]])
PROBLEM = Problem.of(HALF, HALF, FRAMES, Select(5, 1.0, "frame", "all"), None, None)
WORK = {"chip": "9.0", "joint": False, "region": False, "k": 5, "work": "w", "us": {"cuda": 1.0, "triton": 2.0}}


@pytest.fixture
def a_gpu(monkeypatch):
    """Pretend that tensors are on a GPU of compute capability 9.0 with everything installed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module = SimpleNamespace(LARGEST_K=20)
    for name, value in (("CUDA", module), ("TRITON_MISSING", None), ("why_not_triton", lambda *call: None)):
        monkeypatch.setattr(importlib.import_module("timecycle.ops.topk_affinity"), name, value)
    monkeypatch.setattr(backends, "why_not_cuda", lambda tensor: None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"query": HALF.half(), "bank": HALF.half()}, None),
        ({"query": HALF.float()}, "it multiplies bfloat16 and float16, not float32"),
        ({"keep_ties": True}, 'its lists are of one length, and ties="all" keeps as many as there are'),
        ({"k": 20}, None),
        ({"k": 21}, "it keeps at most 20 neighbors, not 21"),
        ({"bank": HALF[:0]}, "the bank is empty"),
    ],
)
@pytest.mark.usefixtures("a_gpu")
def test_reasons_why_cuda_cannot_run(change, reason):
    assert why_not_cuda(PROBLEM._replace(**change)) == reason


@pytest.mark.skipif(backends.CUDA_MISSING is None, reason="CUDA can run here")
def test_the_error_of_a_requested_backend_has_its_reason():
    with pytest.raises(InputError, match="backend 'cuda' cannot run topk_affinity here: there is no NVIDIA GPU"):
        topk_affinity(HALF, HALF, FRAMES, Select(1, 1.0), backend="cuda")


@pytest.mark.parametrize(
    ("table", "change", "reason"),
    [
        ([], {}, "it was not measured against triton on compute capability 9.0 yet"),
        ([WORK], {}, None),
        ([WORK | {"us": {"cuda": 2.0, "triton": 1.0}}], {}, "similar work takes 2 us, and 1 us with triton"),
        ([WORK | {"us": {"cuda": 1.0}}], {}, "it was not measured against triton on compute capability 9.0 yet"),
        ([WORK | {"chip": "8.0"}], {}, "it was not measured against triton on compute capability 9.0 yet"),
        (
            [WORK],
            {"grid_width": 2, "half_widths": [1]},
            "it was not measured against triton on compute capability 9.0 yet",
        ),
        # The nearest k by ratio, of the same scope if measured.
        ([WORK, WORK | {"k": 20, "us": {"cuda": 9.0, "triton": 8.0}}], {"k": 9}, None),
        (
            [WORK, WORK | {"k": 20, "us": {"cuda": 9.0, "triton": 8.0}}],
            {"k": 11},
            "similar work takes 9 us, and 8 us with triton",
        ),
        (
            [WORK, WORK | {"joint": True, "us": {"cuda": 9.0, "triton": 8.0}}],
            {"joint": True},
            "similar work takes 9 us, and 8 us with triton",
        ),
    ],
)
@pytest.mark.usefixtures("a_gpu")
def test_measured_speeds_decide(table, change, reason, monkeypatch):
    monkeypatch.setattr(speeds, "records", lambda: table)
    assert slower_than_triton(PROBLEM._replace(**change)) == reason


def test_a_slow_backend_runs_only_by_name(monkeypatch):
    def backend(name, **options):
        return backends.Backend(name, None, lambda *_: None, lambda *_: name, **options)

    slow = backend("slow", unless_asked=lambda *_: "it is slow")
    monkeypatch.setitem(backends._REGISTERED, "made", (slow, backend("fast")))
    assert backends.choose("made", None, HALF).name == "fast"
    assert backends.choose("made", "slow", HALF).name == "slow"


def test_the_table_is_made_from_results_files(tmp_path, monkeypatch, capsys):
    def results(name, date, us, **change):
        case = {"backward": False, "joint": True, "region": False, "k": 10, "work": "w"} | change
        cases = [case | {"backend": backend, "us": value} for backend, value in us.items()]
        cases.append(case | {"backend": "triton", "work": "only Triton's", "us": 1.0})
        cases.append({"name": "failed", "error": "no"})
        path = tmp_path / f"{name}.json"
        parts = {"second": {"cases": {"figures": cases}}}
        path.write_text(json.dumps({"date": date, "capability": "9.0", "parts": parts}))
        return path

    later = results("a", "2026-12-02", {"cuda": 3.0, "triton": 4.0})
    earlier = results("b", "2026-12-01", {"cuda": 5.0, "triton": 6.0})
    gradient = results("c", "2026-12-03", {"cuda": 7.0, "triton": 8.0}, backward=True)
    monkeypatch.setattr(gpu_speeds, "TABLE", tmp_path / "speeds.json")
    monkeypatch.setattr("sys.argv", ["gpu_speeds", str(later), str(earlier), str(gradient)])
    gpu_speeds.main()
    assert json.loads((tmp_path / "speeds.json").read_text()) == [
        {"chip": "9.0", "joint": True, "region": False, "k": 10, "work": "w", "us": {"cuda": 3.0, "triton": 4.0}}
    ]
    assert "1 pieces of work" in capsys.readouterr().out
    monkeypatch.setattr(speeds.resources, "files", lambda package: tmp_path)
    speeds.records.cache_clear()
    assert speeds.records()[0]["us"] == {"cuda": 3.0, "triton": 4.0}
    speeds.records.cache_clear()


def test_the_committed_table_is_readable():
    assert all({"chip", "joint", "region", "k", "us"} <= record.keys() for record in speeds.records())
