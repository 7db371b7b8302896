"""The tables of docs/performance.md, made from results files."""

import json
from pathlib import Path

import pytest

from benchmarks import report, report_gpu


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(26.04, "26 s"), (1.26, "1.3 s"), (0.6073, "607 ms"), (0.0174, "17.4 ms"), (1.9e-4, "190 µs")],
)
def test_times_have_two_digits_or_more(seconds, words):
    assert report.duration(seconds) == words.replace(" ", report.NO_BREAK)


def results(machine: str, day: int, seconds: float, ratio: float) -> dict:
    info = {
        "peak_mb": 2.0,
        "rival_peak_mb": {"PyTorch, materialised": 1215.0},
        "ratio_to": {"PyTorch, materialised": ratio},
    }
    info["rival_seconds"] = {"PyTorch, materialised": seconds / ratio}
    about = {"threads": 2, "cpu capability": "AVX2", "torch": "2", "python": "3", "commit": "abc"}
    return {
        "datetime": f"2026-01-{day:02d}T00:00",
        "machine_info": {"cpu": {"brand_raw": machine}, "timecycle": about},
        "benchmarks": [
            {"name": "bench_per_frame[480-float32-5]", "stats": {"median": seconds}, "extra_info": info},
            {"name": "bench_of_no_table", "stats": {"median": seconds}, "extra_info": info},
        ],
    }


def test_every_machine_has_a_row_the_newest_first(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    (tmp_path / "cpu-a.json").write_text(json.dumps(results("Old(R) Processor", 1, 0.5, 0.5)))
    (tmp_path / "cpu-b.json").write_text(json.dumps(results("New", 2, 0.25, 1.25)))
    head, _, row = report.cpu_others().replace(report.NO_BREAK, " ").splitlines()
    assert head.split(" | ")[2:4] == ["times as fast, New", "times as fast, Old"]
    assert row.split(" | ")[2:] == [
        "**0.80**: 250 ms beside 200 ms",
        "**2.0**: 500 ms beside 1.0 s",
        "2 MB",
        "1.2 GB |",
    ]
    assert "2026-01-02 | abc" in report.cpus().splitlines()[2]


def test_no_rival_on_a_cpu_is_faster_as_the_page_says():
    ratios = [one.info["ratio_to"][rival] for one, rival in report.compared(report.OTHERS)]
    assert len(ratios) > 20
    assert max(ratios) < 1


def test_of_each_piece_of_work_the_newest_result_counts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_gpu, "GPU", tmp_path)

    def write(day: int, commit: str, figures: list[dict]) -> None:
        content = {
            "date": f"2026-01-{day:02d}T0000Z",
            "commit": commit,
            "parts": {"first": {"step": {"figures": figures}}},
        }
        (tmp_path / f"{commit}.json").write_text(json.dumps(content))

    def trained(name: str, ours: float, plain: float) -> dict:
        return {"name": name, "ours": {"us": ours, "peak_mb": 1}, "plain": {"us": plain, "peak_mb": 2}}

    write(3, "newer", [trained("loss", 300, 100), {"name": "step", "error": "out of memory"}])
    write(2, "older", [trained("loss", 50, 100), trained("step", 50, 100)])
    (tmp_path / "programs.json").write_text(json.dumps({"date": "2026-01-04", "parts": {}}))
    assert report_gpu.training().replace(report.NO_BREAK, " ").splitlines()[2:] == [
        "| loss | 300 µs | 100 µs | 0.33 | 1 MB | 2 MB | newer |",
        "| step | 50 µs | 100 µs | 2.0 | 1 MB | 2 MB | older |",
    ]
    assert report_gpu.slower().replace(report.NO_BREAK, " ").splitlines()[2:] == [
        "| loss | 300 µs | 100 µs | 3.0 | newer |"
    ]


def test_results_of_a_chip_have_its_name():
    content = {"machine_info": {"cpu": {"brand_raw": "Intel(R) Xeon(R) Processor", "family": 6, "model": 207}}}
    assert report.results_path(content).name == "cpu-intel-xeon-processor-6-207.json"
