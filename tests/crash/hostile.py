"""Hostile names in lists, pickles, archives and results folders: nothing outside the results folder may change.

A case puts one hostile name in one place, and data where the name leads, so that it is not refused merely because
nothing is there. The program must end with status 0, or with 2 and a sentence.
"""

import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.crash.hostile_places import CASES, Box, Make, linked, playlist, share
from tests.crash.names import LINKS, NAMES, PLAYLISTS, VICTIM
from tests.crash.processes import Ended, Zygotes
from tests.crash.trees import changes, partial, snapshot


def cases() -> Iterator[tuple[str, str, Make]]:
    """Every case: place, name, and the function that makes it."""
    for title, make in CASES.items():
        yield from ((title, name, make) for name in NAMES)
    yield from (("link", name, linked) for name in LINKS)
    for kind in PLAYLISTS:
        yield from (("playlist", f"{kind} as {suffix}", playlist) for suffix in ("mp4", kind))


def try_all(zygotes: Zygotes, work: Path, number: int, seed: int, jobs: int, only: str = "") -> dict[str, Any]:
    """Run about `number` cases, as many of each place with `only` in its name; results by place."""
    work.mkdir(parents=True)
    share(work / "shared")
    places: dict[str, list[tuple[str, str, Make]]] = {}
    for case in cases():
        if only in case[0]:
            places.setdefault(case[0], []).append(case)
    rng, each = random.Random(seed), -(-number // len(places))
    chosen = [case for some in places.values() for case in rng.sample(some, min(each, len(some)))]
    found: dict[str, Any] = {
        title: {"cases": 0, "ended well": 0, "refused": 0, "faults": []}
        for title in dict.fromkeys(c[0] for c in chosen)
    }
    there = {folder: sorted(os.listdir(folder)) for folder in ("/", Path.home(), work.parent)}
    with ThreadPoolExecutor(jobs) as pool:
        runs = pool.map(lambda each: run(zygotes, work / f"{each[0]}", *each[1]), enumerate(chosen))
        for (title, name, _), (done, wrong) in zip(chosen, runs, strict=True):
            one = found[title]
            one["cases"] += 1
            one["ended well" if done.status == 0 else "refused"] += 1
            if wrong:
                one["faults"].append({"name": name, "wrong": wrong, "stderr": done.err[-600:]})
                print(f"    {title}: {name[:60]!r}: {wrong}", flush=True)
    for folder, names in there.items():
        if sorted(os.listdir(folder)) != names:
            found[chosen[0][0]]["faults"].append({"name": "", "wrong": f"{folder} holds other names than before"})
            print(f"    {folder} holds {sorted(set(os.listdir(folder)) ^ set(names))}", flush=True)
    print(f"{len(chosen)} hostile names and files", flush=True)
    return found


def run(zygotes: Zygotes, root: Path, title: str, name: str, make: Make) -> tuple[Ended, str | None]:
    box = Box(root)
    for folder in (box.own, box.victim, root / "home"):
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    (box.victim / "evil").mkdir()
    program, words = make(box, name.replace(VICTIM, str(box.victim)))
    out = box.own / "out"
    before = snapshot(root, without=out)
    done = zygotes.run(program, words, box.own, variables={"HOME": str(root / "home")})
    wrong = done.wrong(0, 2) or changes(snapshot(root, without=out), before)
    if not wrong and (left := partial(out)) and "partial" not in name:
        wrong = f"left {left[:3]}"
    if not wrong and title == "playlist":
        taken = [line for line in (out / "list.txt").read_text().splitlines() if "sound.mp4" not in line]
        wrong = f"took {taken}" if taken else None
    if not wrong:
        shutil.rmtree(root)
    return done, wrong
