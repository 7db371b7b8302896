"""Results folders of evaluations with a damaged results.json, and command lines of what reads them.

`report`, `compare` and `inspect` give what they should or a sentence, and change nothing in the results folder.
"""

import atexit
import functools
import json
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.targets.command_lines import Options, called, words_of, working_in
from tests.fuzz.targets.json_files import changed, json_bytes
from timecycle import cli
from timecycle.data.synthetic import make_davis
from timecycle.evaluation.comparison.compare import compare
from timecycle.evaluation.comparison.page import page
from timecycle.evaluation.davis.inspection import inspect_run
from timecycle.evaluation.davis.report import rewrite_report
from timecycle.evaluation.davis.results import RESULTS

JSON = re.compile(r'<script type="application/json"[^>]*>(.*?)</script>', re.DOTALL)
EVALUATE = ("--features", "color", "--cropSize", "48", "--quiet", "--inspect", "0", "--topk_vis")


@functools.cache
def evaluated() -> Path:
    """A folder with two results folders of this program: "a" and "b"."""
    parent = Path(tempfile.mkdtemp(prefix="evaluations-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / "case"
    folder.mkdir()
    make_davis(folder / "davis", 2, 3, 48, 64)
    with working_in(folder):
        for name, k in (("a", "5"), ("b", "2")):
            cli.run(["evaluate", "--davis", "davis", "--save_path", name, *EVALUATE, k])
    return folder


def damaged(rng: random.Random, name: str) -> Path:
    """A results folder whose results.json is damaged for this case; the next case damages the whole one again."""
    run = evaluated() / name
    whole = run / "whole.json"
    if not whole.is_file():
        shutil.copy(run / RESULTS, whole)
    content = json.loads(whole.read_bytes())
    part = rng.choice([None, *content])
    if part is not None:
        content[part] = changed(rng, content[part])
    (run / RESULTS).write_bytes(json_bytes(rng, content) if part is None or rng.random() < 0.2 else dumped(content))
    return run


def dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def restored(name: str) -> Path:
    """A whole results folder."""
    run = evaluated() / name
    if (run / "whole.json").is_file():
        shutil.copy(run / "whole.json", run / RESULTS)
    return run


def check_page(file: bytes) -> None:
    """A page is complete, and the JSON in it is JSON."""
    text = file.decode()
    assert text.endswith("</html>")
    for found in JSON.findall(text):
        json.loads(found, parse_constant=lambda name: 1 / 0)


def case_report(rng: random.Random, folder: Path) -> None:
    run = damaged(rng, "a")
    check_page(rewrite_report(run, folder / "page.html", rng.random() < 0.5).read_bytes())


def case_compare(rng: random.Random, folder: Path) -> None:
    """Two evaluations, one with a damaged record, compared, as tables and as a page."""
    runs = [restored("a"), damaged(rng, "b")]
    comparison = compare(rng.sample(runs, 2), across=rng.choice([("k",), ("protocol",)]))
    assert str(comparison)
    check_page(page(comparison, folder, rng.random() < 0.5))


def case_inspect(rng: random.Random, folder: Path) -> None:
    run = damaged(rng, "a")
    at = rng.choice([None, (20, 20), (63, 47)])
    frame = rng.choice([None, 1, "00002"])
    name = None if frame is None and at is None else "made-crossing"
    found = inspect_run(run, name, frame, at, progress=False)
    assert found.table()
    assert found.picture.ndim == 3


REPORT: Options = {
    "-o": ("page.html", "runs", "runs/a/results.json", "new/page.html"), "--single-file": (), "--inspect": ("0", "1"),
}  # fmt: skip
COMPARE: Options = {
    "-o": ("page.html", "page.txt", "runs", "new/page.html"), "--single-file": (), "--latex": (), "--markdown": (),
    "--csv": (), "--names": ("x", "a"), "--sequences": ("made-crossing", "made-deform"),
    "--across": ("k", "protocol", "radius"),
}  # fmt: skip
INSPECT: Options = {
    "-o": ("x.jpg", "x.png", "x.txt", "runs", "new/x.jpg"), "--sequence": ("made-crossing", "made-deform"),
    "--frame": ("1", "00002", "3", "0"), "--at": ("0,0", "20,30", "63,47", "64,48", "-1,2"),
    "--features": ("json:dumps", "color"), "--device": ("cpu", "auto", "cuda:9", "meta"),
}  # fmt: skip
PLACES = ("runs/a", "runs/b", "runs", "nowhere", "runs/a/results.json")


def case_command_line(rng: random.Random, folder: Path) -> None:
    """A command line of one of the three, on a copy of the results folders."""
    name, options, most = rng.choice([("report", REPORT, 1), ("compare", COMPARE, 3), ("inspect", INSPECT, 1)])
    for run in ("a", "b"):
        shutil.copytree(restored(run), folder / "runs" / run)
    words = words_of(rng, options)
    at = rng.choice([0, len(words)])
    words[at:at] = rng.choices(PLACES[:2] if rng.random() < 0.7 else PLACES, k=most)
    with working_in(folder):
        before = Path("runs/a/made-crossing/00002.png").read_bytes()
        called(lambda: cli.run([name, *words]), words)
        assert Path("runs/a/made-crossing/00002.png").read_bytes() == before
