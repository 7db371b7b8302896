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
LINES = 14  # at most: the demo's table and what follows


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


def run(command: str, names: dict[str, str]) -> dict[str, object]:
    """Run a command in the clone; the seconds it took, and the last lines it printed, with paths replaced by names."""
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
    seconds, text = time.monotonic() - start, process.stdout
    for path, name in names.items():
        command, text = command.replace(path, name), text.replace(path, name)
    lines = text.splitlines()[-LINES:]
    lines = lines[next((i for i, line in enumerate(lines) if line.startswith("sequence ")), 0) :]
    print("\n".join(lines), f"\n{seconds:.0f} s", flush=True)
    if process.returncode:
        sys.exit(f"error: {command} failed with exit status {process.returncode}")
    found: dict[str, object] = {"command": command, "seconds": round(seconds, 1)}
    if not command.startswith("make env"):  # which prints what pip does
        found["printed"] = lines
    counts = re.findall(r"(\d+) frames in [\d.]+ s", text) or re.findall(r", (\d+) frames$", text, re.M)
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
    names = {arguments.clip: "clip.mp4", str(ROOT): "."}
    if arguments.davis:
        names[arguments.davis] = "DAVIS"
    asked = commands(arguments.davis, arguments.clip, arguments.box)
    found = {
        "commit": git.stdout.strip(),
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "fresh": not (ROOT / ".venv").exists(),
        "commands": {name: run(command, names) for name, command in asked.items()},
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
