"""Command line of the crash tests; see the package."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.crash import environment, hostile, kills
from tests.crash.processes import zygotes
from tests.crash.programs import make_data
from timecycle.errors import InputError, run_command_line
from timecycle.files import write_json
from timecycle.provenance import commit, versions

PARTS = ("kills", "environment", "hostile")


def main() -> None:
    """Run some or all parts, and write their results."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Kill programs and see what is left.")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--kills", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--names", type=int, default=500, help="hostile names and files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays (default: a temporary one)")
    parser.add_argument("--only", default="", help="of environment and hostile, cases with this in their names")
    parser.add_argument("--results", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    parts = list(dict.fromkeys(arguments.parts or PARTS))
    if unknown := [name for name in parts if name not in PARTS]:
        raise InputError(f"{unknown[0]} is no part; expected some of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary, zygotes(arguments.jobs) as running:
        work = (arguments.keep or Path(temporary)).resolve()
        data = work / "data"
        make_data(data)
        found: dict[str, Any] = {}
        for part in parts:
            if part == "kills":
                options = arguments.kills, arguments.seed, arguments.jobs
                found[part] = kills.kill_all(running, data, work / part, *options)
            elif part == "environment":
                found[part] = environment.break_all(running, data, work / part, arguments.jobs, arguments.only)
            else:
                options = arguments.names, arguments.seed, arguments.jobs, arguments.only
                found[part] = hostile.try_all(running, work / part, *options)
            faults = sum(len(each["faults"]) for part in found.values() for each in part.values())
            if arguments.results:  # after each part, as a part takes long
                content = {"seed": arguments.seed, "faults": faults, "commit": commit(), "versions": versions()}
                write_json(arguments.results, content | found)
    print(f"{faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_command_line(main)
