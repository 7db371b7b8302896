"""Write timecycle/ops/speeds.json, which chooses between GPU backends, from results of make gpu-check.

python -m benchmarks.gpu_speeds benchmarks/results/*/*.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "timecycle" / "ops" / "speeds.json"


def speeds(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that timecycle/ops/speeds.py reads: the latest times of all work that two backends ran on a chip."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for content in sorted(results, key=lambda content: content["date"]):
        steps = (step for part in content["parts"].values() for step in part.values())
        for case in (figure for step in steps for figure in step["figures"]):
            if "work" in case and not case["backward"]:
                work = (content["capability"], case["joint"], case["region"], case["k"], case["work"])
                found.setdefault(work, {})[case["backend"]] = case["us"]
    return [
        {"chip": chip, "joint": joint, "region": region, "k": k, "work": work, "us": us}
        for (chip, joint, region, k, work), us in found.items()
        if len(us) > 1
    ]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_speeds", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="results files of make gpu-check")
    rows = speeds([json.loads(path.read_text()) for path in parser.parse_args().results])
    TABLE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n" if rows else "[]\n")
    print(f"{len(rows)} pieces of work in {TABLE}")


if __name__ == "__main__":
    main()
