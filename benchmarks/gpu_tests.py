"""Tests on a GPU in several processes, a line of JSON per test: python -m benchmarks.gpu_tests FILE...

Each process runs a share of the tests. A process that hangs, dies or loses its CUDA context costs one test: a new
process continues with the next.
"""

import argparse
import glob
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from benchmarks.gpu_setting import TINY, say
from benchmarks.gpu_steps import REHEARSAL, ROOT
from timecycle.errors import run_command_line

SECONDS = 60.0  # time limit of a test
START = 60.0  # time limit of a process's start, which imports and collects


def lines_from(descriptor: int, seconds: float) -> Iterator[str | None]:
    """Lines from a pipe as they arrive; None at last if none arrives for `seconds`, or START for the first."""
    left, patience = b"", max(START, seconds)
    while True:
        ready, _, _ = select.select([descriptor], [], [], patience)
        if not ready:
            yield None
            return
        found = os.read(descriptor, 1 << 16)
        if not found:
            return
        patience = seconds
        *lines, left = (left + found).split(b"\n")
        yield from (line.decode() for line in lines)


def run_share(files: list[str], first: int, step: int, seconds: float) -> None:
    """Run and report a share of the tests, in a new process after each test that ended one."""
    done, plugin = 0, ("-p", "benchmarks.gpu_pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-q")
    plugin += ("-m", "not nightly")  # includes gpu_sim
    # In a rehearsal tests run as on any machine without a GPU, and choose the interpreter themselves.
    environment = {name: x for name, x in os.environ.items() if not TINY or name not in (REHEARSAL, "TRITON_INTERPRET")}
    while True:
        reading, writing = os.pipe()
        share = ("--share", str(first), str(step), str(done), "--lines-to", str(writing))
        command = [sys.executable, "-m", "pytest", *plugin, *share, *(["--one-each"] if TINY else []), *files]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, pass_fds=[writing], env=environment
            )
            os.close(writing)
            running, before, start, late = None, done, time.monotonic(), False
            for line in lines_from(reading, seconds):
                if line is None:
                    late = True
                    break
                found = json.loads(line)
                if "started" in found:
                    running, start = found["started"], time.monotonic()
                    continue
                if running is not None:  # else a file that could not be collected, which every share reports
                    done, running = done + 1, None
                elif first:
                    continue
                report(found["test"], found["outcome"], found["seconds"], found["message"])
            os.close(reading)
            if late:
                process.kill()
            status = process.wait()
            if running is not None:
                what = f"stopped after {seconds:.0f} s" if late else f"its process ended with status {status}"
                report(running, "failed", round(time.monotonic() - start, 2), what)
                done += 1
            elif status in (0, 1, 5) and not late:  # all ran, or there was none
                return
            elif done == before:
                output.seek(0)
                said = output.read().decode(errors="replace")[-800:]
                report(f"share {first} of {step}", "failed", 0.0, f"pytest ended with status {status}: {said}")
                return


def report(test: str, outcome: str, seconds: float, message: str) -> None:
    """Print the result of a test."""
    error = {"error": message or outcome} if outcome == "failed" else {}
    say({"name": test, "outcome": outcome, "seconds": seconds} | error)


def main() -> None:
    """Run the tests of all files; a glob pattern without a match is a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tests", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--without", nargs="*", default=[], help="files to leave out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of a test (default: %(default)s)")
    options, files = parser.parse_args(), []
    for pattern in options.files:
        found = sorted(glob.glob(pattern, root_dir=ROOT))
        files += [file for file in found if file not in (*options.without, *files)]
        if not found:
            say({"name": pattern, "error": "there is no such file"})
    shares = [
        threading.Thread(target=run_share, args=(files, first, options.workers, options.seconds))
        for first in range(options.workers)
    ]
    for share in shares:
        share.start()
    for share in shares:
        share.join()


if __name__ == "__main__":
    run_command_line(main)
