"""How often the rules of `timecycle.evaluation.davis.causes` name the cause that was provoked in made clips.

    python -m benchmarks.causes     # minutes; writes benchmarks/results/causes.json, shown in docs/causes.md

Clips are drawn (benchmarks/failures.py) or propagated through rendered video (benchmarks/failing_videos.py). The rules
were written with the clips of DEVELOPED in view; those of HELD_OUT were first looked at when the rules were done.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.failing_videos import VIDEOS, propagated
from benchmarks.failures import FAILURES, Clip, success
from benchmarks.report import ROOT
from docs import markdown
from timecycle.evaluation.davis.causes import CAUSES, OTHER, Cause, causes_of
from timecycle.evaluation.davis.scores import score_sequence
from timecycle.evaluation.davis.tables import Scores
from timecycle.progress import Progress
from timecycle.provenance import commit

RESULTS = ROOT / "benchmarks" / "results" / "causes.json"
JUDGED = ROOT / "benchmarks" / "results" / "causes_judged.json"
NOTHING = "nothing provoked"
DEVELOPED = {"drawn": range(30), "propagated": range(8)}
HELD_OUT = {"drawn": range(5000, 5100), "propagated": range(5000, 5020)}
"""Seeds by kind of clip."""
MADE: dict[str, Callable[[str | None, int], Clip]] = {
    "drawn": lambda cause, seed: success(seed) if cause is None else FAILURES[cause](seed),
    "propagated": lambda cause, seed: propagated(cause, seed)[1],
}
GOOD = "does not fail"


def scores_of(clip: Clip) -> Scores:
    """The scores of a clip."""
    return Scores({"clip": score_sequence(clip.annotations, clip.results)})


def named(clip: Clip) -> list[Cause]:
    """The causes of object 1."""
    return [cause for cause in causes_of(scores_of(clip)) if cause.object_id == 1]


def outcome(clip: Clip) -> str:
    """The first cause of object 1, or GOOD."""
    causes = named(clip)
    return causes[0].name if causes else GOOD


def outcomes(kind: str, seeds: Iterable[int]) -> dict[str, dict[str, int]]:
    """By provoked cause, how many clips have each outcome."""
    seeds, found = list(seeds), {}
    with Progress(len(VIDEOS) * len(seeds), "clip", kind) as bar:
        for cause in VIDEOS:
            counted: Counter[str] = Counter()
            for seed in seeds:
                counted[outcome(MADE[kind](cause, seed))] += 1
                bar.update()
            found[cause or NOTHING] = dict(counted.most_common())
    return found


def right(cause: str, found: dict[str, int]) -> tuple[int, int]:
    """How many clips are named right, of how many: all that fail, or without a provoked cause all."""
    if cause == NOTHING:
        return found.get(GOOD, 0) + found.get(OTHER, 0), sum(found.values())
    return found.get(cause, 0), sum(found.values()) - found.get(GOOD, 0)


def total(results: dict[str, Any], kind: str, which: str = "held out") -> tuple[int, int]:
    """The same over all causes of the results file."""
    pairs = [right(cause, found) for cause, found in results[kind][which].items()]
    return sum(one for one, _ in pairs), sum(of for _, of in pairs)


def read_results() -> dict[str, Any]:
    """What the results file holds."""
    return json.loads(RESULTS.read_text())


def block() -> str:
    """The table of the results file, for docs/generated.py."""
    results = read_results()
    rows = []
    for cause in VIDEOS:
        row, others = [cause or NOTHING], Counter[str]()
        for kind in MADE:
            for which in ("developed", "held out"):
                found = results[kind][which][cause or NOTHING]
                row.append("{} of {}".format(*right(cause or NOTHING, found)))
                if which == "held out":
                    others.update({name: count for name, count in found.items() if name not in (cause, GOOD)})
        said = "; ".join(f"{name} {count}" for name, count in others.most_common() if cause or name != OTHER)
        rows.append([*row, said])
    sums = ["{} of {}".format(*total(results, kind, which)) for kind in MADE for which in ("developed", "held out")]
    head = ["provoked", "drawn, developed", "drawn, held out", "propagated, developed", "propagated, held out"]
    return (
        f"{markdown.table([*head, 'held out, named otherwise'], [*rows, ['all', *sums, '']])}\n\n"
        "Clips named right, of those that fail; without a provoked cause, those without a cause or with other, of all. "
        f"Commit {results['commit']}, from `{RESULTS.relative_to(ROOT)}`."
    )


def judged() -> str:
    """What was found on real video, for docs/generated.py."""
    content = json.loads(JUDGED.read_text())
    counted = Counter((case["cause"], case["judged"]) for run in content["runs"] for case in run["cases"])
    rows = [
        [cause, *(str(counted[cause, verdict]) for verdict in ("right", "disputable", "wrong"))]
        for cause in CAUSES
        if any(name == cause for name, _ in counted)
    ]
    sums = [str(sum(int(row[column]) for row in rows)) for column in (1, 2, 3)]
    doubts = Counter(case["why"] for run in content["runs"] for case in run["cases"] if "why" in case)
    said = "; ".join(f"{why} ({count})" for why, count in doubts.most_common())
    runs = "; ".join(f"{run['video']}, protocol {run['protocol']}, {run['features']}" for run in content["runs"])
    return (
        f"{markdown.table(['named', 'right', 'disputable', 'wrong'], [*rows, ['all', *sums]])}\n\n"
        f"Runs: {runs}. Disputable: {said}. From `{JUDGED.relative_to(ROOT)}`."
    )


def main() -> None:
    """Make the clips, name them and store the counts."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"commit": commit(7) or "unknown"}
    for kind in MADE:
        found[kind] = {"developed": outcomes(kind, DEVELOPED[kind]), "held out": outcomes(kind, HELD_OUT[kind])}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for kind in MADE:
        print(kind, "{} of {}".format(*total(found, kind)))


if __name__ == "__main__":
    main()
