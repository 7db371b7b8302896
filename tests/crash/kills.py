"""Kills: a program is killed at a change of its folder and run again; it must leave what an undisturbed run leaves."""

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.processes import KILLED, Ended, Zygotes
from tests.crash.programs import PROGRAMS, Program
from tests.crash.trees import Tree, difference, partial, results

AGAIN = 0.2
"""Share of the cases in which the second run is killed, too."""


@dataclass
class Known:
    """An undisturbed run of a program."""

    program: Program
    data: Path
    start: Path | None
    """The initial content of its folder."""
    tree: Tree
    events: int
    seconds: float
    size: int
    """Bytes that it wrote."""
    found: dict[str, Any] = field(default_factory=dict)


def kill_all(zygotes: Zygotes, data: Path, work: Path, kills: int, seed: int, jobs: int) -> dict[str, Any]:
    """Kill all programs about so many times; results by program."""
    work.mkdir(parents=True)
    shares = sum(program.share for program in PROGRAMS.values())
    with ThreadPoolExecutor(jobs) as pool:
        known = list(pool.map(lambda p: undisturbed(zygotes, p, data, work), PROGRAMS.values()))
        for one in known:
            one.found |= {"kills": 0, "runs": 0, "not reached": 0, "events": one.events, "faults": []}
        cases = [
            (one, number, round(number * one.events / wanted), f"{seed}/{one.program.name}/{number}")
            for one in known
            for wanted in [max(1, round(kills * one.program.share / shares))]
            for number in range(wanted)
        ]
        begin = time.monotonic()
        for one, killed, fault in pool.map(lambda case: cycle(zygotes, work, *case), cases):
            one.found["kills"] += killed
            one.found["not reached"] += killed == 0
            one.found["runs"] += 1 + max(killed, 1)
            if fault:
                one.found["faults"].append(fault)
                print(f"    {one.program.name}: {fault}", flush=True)
    total = sum(one.found["kills"] for one in known)
    for one in known:
        found = one.found
        print(
            f"{one.program.name}: {found['events']} changes, {found['kills']} kills, "
            f"{found['not reached']} not reached, {len(found['faults'])} faults",
            flush=True,
        )
    print(f"{total} kills in {time.monotonic() - begin:.0f} s")
    return {one.program.name: one.found for one in known}


def undisturbed(zygotes: Zygotes, program: Program, data: Path, work: Path) -> Known:
    """Run a program twice. Raises AssertionError if the runs do not leave the same."""
    start = None
    if program.begin:
        start = work / f"{program.name}, start"
        start.mkdir()
        done = zygotes.run(program.program, program.command(data, program.begin), start)
        assert done.wrong(0) is None, f"{program.name}: {done.wrong(0)}"
    trees, events, size = [], 0, 0
    for turn in range(2):
        folder = _folder(work / f"{program.name}, undisturbed {turn}", start)
        done = zygotes.run(program.program, program.command(data), folder)
        assert done.wrong(0) is None, f"{program.name}: {done.wrong(0)}"
        assert partial(folder) == []
        trees.append(results(folder))
        events = len(done.events)
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
    same = difference(*trees)
    assert same is None, f"{program.name}: two undisturbed runs differ: {same}"
    assert events > 0, f"{program.name} changed nothing"
    return Known(program, data, start, trees[0], events, done.seconds, size)


def _folder(path: Path, start: Path | None) -> Path:
    if start:
        shutil.copytree(start, path, symlinks=True)
    else:
        path.mkdir()
    return path


def cycle(zygotes: Zygotes, work: Path, known: Known, number: int, point: int, drawn: str) -> tuple[Known, int, Any]:
    """Kill a program once or twice, and run it again. Returns the number of kills, and what is wrong, if anything."""
    rng = random.Random(drawn)
    program, killed = known.program, 0
    folder = _folder(work / f"{program.name}, {number}", known.start)
    said: list[str] = []

    def run(kill: str | None) -> Ended:
        said.append(kill or "none")
        return zygotes.run(program.program, program.command(known.data), folder, kill=kill)

    def kill(at: int) -> str:
        how = rng.choices(["own", "group", f"later:{10 ** rng.uniform(-4.5, -1.5):.6f}"], [4, 3, 3])[0]
        return f"{how}:{at}"

    for _ in range(2 if rng.random() < AGAIN else 1):
        done = run(kill(point + 1))
        killed += done.status in KILLED or "SIGKILL" in done.err
        # A killed worker may be replaced; then the program succeeds.
        if wrong := done.wrong(0, 2, *KILLED):
            return known, killed, _fault(drawn, point, said, wrong, done)
        point = rng.randrange(known.events)
    done = run(None)
    left = partial(folder)
    wrong = done.wrong(0) or (f"left {left[:3]}" if left else None) or difference(results(folder), known.tree)
    if wrong:
        return known, killed, _fault(drawn, point, said, wrong, done)
    shutil.rmtree(folder)
    return known, killed, None


def _fault(drawn: str, point: int, said: list[str], wrong: str, done: Ended) -> dict[str, Any]:
    return {"case": drawn, "point": point, "runs": said, "wrong": wrong, "stderr": done.err[-600:]}
