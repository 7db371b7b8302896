"""Time the README's commands as a newcomer meets them, in a fresh clone.

    python3 -m benchmarks.doors --davis DAVIS --clip CLIP --box X,Y,W,H

Without --davis, evaluates on synthetic video. Needs nothing but Python; the first command sets up the rest. Writes
benchmarks/results/doors.json: the seconds of each command, its frames, and the last lines that it printed.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "doors.json"
LINES = 12


def commands(davis: str | None, clip: str, box: str) -> dict[str, str]:
    """The commands by name, in order."""
    data = f" --davis {shlex.quote(davis)}" if davis else ""
    return {
        "set-up": "make env",
        "demo": "make demo",
        "track": f".venv/bin/timecycle track {shlex.quote(clip)} -o out/clip --box {box}",
        "evaluate": f".venv/bin/timecycle evaluate{data} --protocol dino --features examples.my_vit:extract",
        "train": ".venv/bin/timecycle train",
    }


def run(command: str) -> dict[str, object]:
    """Run a command in the clone; the seconds it took, and the last lines it printed."""
    print(f"$ {command}", flush=True)
    start = time.monotonic()
    process = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seconds = time.monotonic() - start
    lines = process.stdout.replace(str(ROOT), ".").splitlines()[-LINES:]
    print("\n".join(lines), f"\n{seconds:.0f} s", flush=True)
    if process.returncode:
        sys.exit(f"error: {command} failed with exit status {process.returncode}")
    found = {"seconds": round(seconds, 1), "printed": lines}
    counts = re.findall(r"(\d+) frames in [\d.]+ s", process.stdout) or re.findall(
        r", (\d+) frames$", process.stdout, re.M
    )
    if counts:
        found["frames"] = sum(map(int, counts))
    return found


def main() -> None:
    """Time all commands and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", metavar="DAVIS", help="evaluate on this folder in DAVIS-2017 layout")
    parser.add_argument("--clip", metavar="CLIP", required=True, help="track this video")
    parser.add_argument("--box", metavar="X,Y,W,H", required=True, help="around the object to track, in frame 0")
    arguments = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found = {
        "commit": git.stdout.strip(),
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "fresh": not (ROOT / ".venv").exists(),
        "commands": {
            name: run(command) for name, command in commands(arguments.davis, arguments.clip, arguments.box).items()
        },
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
