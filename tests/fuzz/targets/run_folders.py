"""The folder of a training run, with settings.json, log.jsonl or the contents of checkpoints changed.

As in train.py the run is found, its settings resolved and its state restored, or it is refused. A run that is not
refused must be restored as it was, except for changed numbers that are still valid.
"""

import functools
import json
import random
import re
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.fuzz.targets.json_files import changed, json_bytes, odd_value
from timecycle.training import run_folder as folders
from timecycle.training.checkpointer import Checkpointer, seed_everything
from timecycle.training.distributed import Distributed
from timecycle.training.logger import kept_lines
from timecycle.training.objectives import make_optimizer, make_schedule
from timecycle.training.report import rewrite_report
from timecycle.training.run_folder import Run, find_run, load_checkpoint, start_run
from timecycle.training.settings import RunSettings, resolved

ALONE = Distributed(0, 1, torch.device("cpu"))
CLIPS = "0" * 64
STEPS = (2, 3)
OPTIMIZERS = ("adam", "adamw", "sgd")
LOG = b"".join(json.dumps({"step": step, "loss": 1 / step, "lr": 0.1}).encode() + b"\n" for step in range(1, 6))


def checkpointer(folder: Path, settings: RunSettings) -> Checkpointer:
    """A run of a model with few parameters, at step 0."""
    seed_everything(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = make_optimizer(settings, model)
    return Checkpointer(folder, settings, CLIPS, ALONE, model, optimizer, make_schedule(settings, optimizer, 9))


def contents(optimizer: str) -> list[dict[str, Any]]:
    """Contents of the checkpoints after each of STEPS."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        run = checkpointer(Path(folder), resolved({"optimizer": optimizer, "synthetic_clips": 2}))
        for _ in range(STEPS[-1]):
            run.optimizer.zero_grad()
            run.model(torch.randn(4, 2)).square().sum().backward()
            run.optimizer.step()
            run.schedule.step()
            run.progress.step += 1
            run.progress.best_step, run.progress.best_score = 1, 0.5
            run.skipped["a: b"] += 1
            if run.progress.step in STEPS:
                found.append(load_checkpoint(run.save()))
    return found


def odd(rng: random.Random, value: Any) -> Any:
    """Another value; of a tensor mostly a tensor."""
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        ways = [
            lambda: value.double(),
            lambda: value.long(),
            lambda: value.reshape(-1)[:-1].clone(),
            lambda: value[None],
            lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value - 2**40,
            lambda: torch.full_like(value, float("inf")) if value.is_floating_point() else value * 0,
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: value.to(torch.complex64),
            lambda: torch.empty(0),
        ]
        return rng.choice(ways)()
    if rng.random() < 0.3:
        others = [[], {}, (), b"x", {1: 2}, [None], torch.zeros(3), torch.zeros(()), 10**400, torch.float32, {3}]
        return rng.choice(others)
    return odd_value(rng)


def edited(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A structure with one of its parts removed, replaced, repeated or of another type."""
    if depth and rng.random() < 0.15:
        return odd(rng, value)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        way = rng.random()
        if way < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if way < 0.2:
            return {(rng.choice([0, "x", None, -1]) if name == key else name): each for name, each in value.items()}
        if way < 0.25:
            return value | {rng.choice(["x", 7, None]): odd_value(rng)}
        return value | {key: edited(rng, value[key], depth + 1)}
    if isinstance(value, list | tuple) and value:
        at = rng.randrange(len(value))
        items = list(value)
        if rng.random() < 0.2:
            del items[at]
        elif rng.random() < 0.2:
            items.insert(at, items[at])
        else:
            items[at] = edited(rng, items[at], depth + 1)
        return type(value)(items)
    return odd(rng, value)


CONTENTS = {name: contents(name) for name in OPTIMIZERS}


def case_checkpoint(rng: random.Random, folder: Path) -> None:
    earlier, saved = CONTENTS[rng.choice(OPTIMIZERS)]
    damaged = edited(rng, saved)
    if rng.random() < 0.2 and isinstance(damaged, dict):
        damaged = edited(rng, damaged)
    torch.save(damaged, folder / "checkpoint_0000003.pt")
    if rng.random() < 0.5:
        torch.save(earlier, folder / "checkpoint_0000002.pt")
    given = {"resume": rng.choice(["auto", str(folder / "checkpoint_0000003.pt")]), "checkpoint": folder}

    def set_up(run: Run) -> tuple[Run, Checkpointer]:
        assert run.checkpoint is not None
        assert run.path is not None
        restored = checkpointer(folder, resolved(given, run.stored))
        restored.restore(run.checkpoint, run.path)
        return run, restored

    run, found = find_run(given, set_up)
    expected = saved if run.passed_over is None else earlier
    assert found.progress.step == expected["progress"]["step"]
    for name, value in found.model.state_dict().items():
        assert not value.is_floating_point() or torch.equal(value, expected["model"][name]), name
    for index, values in found.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, expected["optimizer"]["state"][index][name]), (index, name)
    # The run can be continued.
    found.model(torch.randn(4, 2)).square().sum().backward()
    found.optimizer.step()
    found.schedule.step()
    start_run(run, found.settings, ALONE, found.progress.step, found.progress.best_step)
    json.loads((folder / "settings.json").read_text())
    found.save()


@functools.cache
def settings() -> RunSettings:
    """The settings of a run."""
    return resolved({"checkpoint": Path("x")})


def case_settings(rng: random.Random, folder: Path) -> None:
    earlier = {"from_step": 0, "command": ["train.py", "-c", "x"], "commit": None, "versions": {"torch": "2"}}
    kept = {"settings": settings().to_json(), "runs": [earlier] * rng.randrange(3)}
    if rng.random() < 0.95:
        (folder / "settings.json").write_bytes(json_bytes(rng, kept))
    (folder / "checkpoint_0000003.pt").touch()
    start_run(Run(folder, folder / "checkpoint_0000003.pt", {}), settings(), ALONE, 3, 0)
    found = json.loads((folder / "settings.json").read_text())
    assert found["settings"] == settings().to_json()
    assert found["runs"][-1]["from_step"] == 3


def case_stored_settings(rng: random.Random, folder: Path) -> None:
    stored = changed(rng, settings().to_json()) if rng.random() < 0.8 else edited(rng, settings().to_json())
    found = resolved({"resume": "auto"}, stored)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.table()


def case_log(rng: random.Random, folder: Path) -> None:
    lines = LOG.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    way = rng.randrange(3)
    if way == 0:
        lines[at] = json_bytes(rng, json.loads(lines[at])) + b"\n"
    elif way == 1:
        lines.insert(at, rng.choice([b"\0" * 50, b"\n", b"{}\n", b"[" * 5000 + b"\n", rng.randbytes(20)]))
    data = bytearray(b"".join(lines))
    if way == 2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (folder / "log.jsonl").write_bytes(data)
    found, damaged = kept_lines(folder / "log.jsonl", 4)
    assert damaged <= 3
    assert all(isinstance(line["step"], int) and 1 <= line["step"] <= 4 for line in found)
    assert len(found) >= 2
    assert all(abs(float(line.get("loss", 0))) < 1e300 for line in found)


def case_page(rng: random.Random, folder: Path) -> None:
    """The page of a run is written, or settings.json is refused."""
    start = {"from_step": 0, "length": 9, "command": ["train.py"], "versions": {"torch": "2"}, "seconds": 1.5}
    start |= {"to_step": 5, "samples_per_second": 2.5, "started": "2026-01-01T00:00:00+00:00", "commit": "1" * 40}
    kept = {"settings": settings().to_json(), "runs": [start, changed(rng, start)]}
    data = json_bytes(rng, kept) if rng.random() < 0.3 else json.dumps(kept).encode()
    (folder / "settings.json").write_bytes(data)
    data = bytearray(LOG + b'{"step": 4, "J&F": 0.5, "J": 0.4, "F": 0.6}\n')
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (folder / "log.jsonl").write_bytes(data)
    with redirect_stdout(StringIO()):
        page = rewrite_report(folder).read_text(encoding="utf-8")
    assert page.endswith("</html>")
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page):
        json.loads(text)


folders.commit = lambda: None  # it asks git, which takes longer than a case
