"""Command line of the fuzz run: distributes cases over processes, collects their counts, prints and stores them."""

import argparse
import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fuzz import targets, worker
from timecycle.errors import InputError, run_command_line
from timecycle.files import read_json, write_json
from timecycle.provenance import commit, versions

PLAN = {
    "operators": 100_000,
    "images": 50_000,
    "masks": 30_000,
    "lists": 35_000,
    "json_files": 30_000,
    "evaluations": 6_000,
    "checkpoints": 30_000,
    "tasks": 20_000,
    "videos": 4_000,
    "command_lines": 6_000,
    "run_folders": 5_000,
}
"""Cases per target, divided evenly among its functions."""

BATCH = 1000
"""Cases per process."""

LIMIT = 10.0
"""Timeout of a case, seconds."""

STARTING = 60.0
"""Timeout of the first case, for which libraries are imported, and of the exit after the last one, seconds."""


def batch(target: str, function: str, seed: int, start: int, stop: int) -> dict[str, Any]:
    """Counts and faults of some cases; after a crash or a timeout another process continues."""
    found: dict[str, Any] = {"passed": 0, "refused": 0, "faults": []}
    while start < stop:
        with tempfile.TemporaryDirectory() as folder:
            ended, at = _process(target, function, seed, start, stop, Path(folder))
            report = Path(folder, "report")
            counts = json.loads(report.read_text()) if report.is_file() else {"passed": 0, "refused": 0, "faults": []}
        for name in ("passed", "refused", "faults"):
            found[name] += counts[name]
        if ended is None:
            break
        found["faults"].append([at, ended])
        # Cases between the last report and the fault were not refused or faulty as far as is known: they passed.
        found["passed"] += max(0, at - counts.get("next", start))
        start = at + 1
    return found


def _process(target: str, function: str, seed: int, start: int, stop: int, folder: Path) -> tuple[str | None, int]:
    """Run one process. Returns None and the last case, or how it crashed and the case that was running."""
    command = [sys.executable, "-m", "tests.fuzz.worker", target, function, *map(str, (seed, start, stop, folder))]
    place, last, since = folder / "place", b"", time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (folder / "err").open("w+") as err, subprocess.Popen(command, stderr=err, env=environment) as process:
        while process.poll() is None:
            time.sleep(0.05)
            now = place.read_bytes() if place.is_file() else b""
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > (LIMIT if last and start < int(last) < stop else STARTING):
                process.kill()
                return f"took more than {LIMIT:g} s", int(last or start)
        err.seek(0)
        said = err.read()[-2000:]
    at = int(place.read_bytes() or start) if place.is_file() else start
    if process.returncode == 0:
        return None, at
    if not last and process.returncode == 1:
        raise InputError(f"target {target} cannot run: {said}")
    return f"exit status {process.returncode}: {' '.join(said.split())[-200:]}", at


def functions(target: str) -> list[str]:
    """Names of a target's case functions."""
    return [name for name in vars(importlib.import_module(f"tests.fuzz.targets.{target}")) if name.startswith("case_")]


def fuzz(target: str, cases: int, seed: int, jobs: int) -> dict[str, Any]:
    """Run a target; counts by function."""
    found: dict[str, Any] = {}
    names = functions(target)
    for name in names:
        each, begin = -(-cases // len(names)), time.monotonic()
        total: dict[str, Any] = {"cases": each, "passed": 0, "refused": 0, "faults": []}
        with ThreadPoolExecutor(jobs) as pool:
            starts = range(0, each, BATCH)
            stops = [min(start + BATCH, each) for start in starts]
            for part in pool.map(functools.partial(batch, target, name, seed), starts, stops):
                for key in ("passed", "refused", "faults"):
                    total[key] += part[key]
        total["seconds"] = round(time.monotonic() - begin, 1)
        found[name] = total
        show(target, name, total)
    return found


def show(target: str, name: str, total: dict[str, Any]) -> None:
    """Print a function's counts, and its faults by kind."""
    print(
        f"{target}.{name}: {total['cases']} cases, {total['passed']} passed, {total['refused']} refused, "
        f"{len(total['faults'])} faults, {total['seconds']:.0f} s",
        flush=True,
    )
    kinds = Counter(text for _, text in total["faults"])
    first = {text: index for index, text in reversed(total["faults"])}
    for text, count in kinds.most_common(12):
        print(f"    {count} times, first {name}:{first[text]}: {text}", flush=True)


def keep(path: Path, target: str, found: dict[str, Any]) -> None:
    """Write a target's results to a file that keeps those of the other targets, as a run of all takes hours."""
    earlier = read_json(path, "results of a fuzz run")["targets"] if path.exists() else {}
    targets = {name: each for name, each in sorted((earlier | {target: found}).items()) if name in PLAN}
    every = [total for each in targets.values() for total in each["functions"].values()]
    cases, faults = sum(total["cases"] for total in every), sum(len(total["faults"]) for total in every)
    write_json(path, {"cases": cases, "faults": faults, "versions": versions(), "targets": targets})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads files and arguments.")
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(PLAN)} (default: all)")
    parser.add_argument("--cases", type=int, help="of each target (default: as planned)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--only", metavar="FUNCTION:INDEX", help="this one case, in this process")
    parser.add_argument("--results", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    known = {module.name for module in pkgutil.iter_modules(targets.__path__)}
    if unknown := [name for name in arguments.targets if name not in known]:
        raise InputError(f"{unknown[0]} is no target; expected some of {', '.join(sorted(known))}")
    if arguments.only:
        function, _, index = arguments.only.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            print(worker.run_case(arguments.targets[0], function, arguments.seed, int(index), Path(folder) / "case"))
        return
    chosen = arguments.targets or [name for name in PLAN if name in known]
    cases = faults = 0
    for name in chosen:
        found = fuzz(name, arguments.cases or PLAN[name], arguments.seed, arguments.jobs)
        cases += sum(total["cases"] for total in found.values())
        faults += sum(len(total["faults"]) for total in found.values())
        if arguments.results:
            keep(arguments.results, name, {"seed": arguments.seed, "commit": commit(), "functions": found})
    print(f"{cases} cases, {faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_command_line(main)
