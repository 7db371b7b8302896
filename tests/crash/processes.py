"""Runs programs in processes forked from a pool of zygotes (see `zygote`)."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.kill_points import RECORD

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Timeout of a run, seconds."""

KILLED = (-signal.SIGKILL, -signal.SIGALRM)
"""Exit statuses of a program that was killed: at a change, or by a timer after it."""

_ORPHANED = re.compile(
    r'Traceback \(most recent call last\):\n  File "<string>", line 1, in <module>\n(?:  .*\n)+'
    r"EOFError: Ran out of input\n"
)


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int | None
    """Exit status; minus the signal that killed it; None after a timeout."""
    seconds: float
    out: str
    err: str
    events: tuple[str, ...]
    """Changes of its folder: process, kind and path."""
    alone: bool
    """Whether its child processes ended with it."""

    def wrong(self, *statuses: int) -> str | None:
        """What is wrong with a run that should have ended with one of these statuses, or None."""
        # A child that is just starting prints a traceback when its parent is gone.
        err = _ORPHANED.sub("", self.err) if self.status in KILLED else self.err
        if "Traceback (most recent call last)" in err:
            return f"traceback: {_last(self.err)}"
        if self.status is None:
            return "did not end"
        if not self.alone:
            return "left processes that run on"
        if self.status not in statuses:
            return f"exit status {self.status}: {_last(self.err)}"
        if self.status == 2 and not self.sentence:
            return f"no sentence: {_last(self.err)}"
        return None

    @property
    def sentence(self) -> str:
        """The last line of stderr, if it is an error message."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines and ("error: " in lines[-1]) else ""


def plain(text: str) -> str:
    """A program's output without this machine's name and folders, as results are stored."""
    text = text.replace(sys.prefix, "VENV").replace(str(ROOT), ".")
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:]


class Zygotes:
    """A pool of zygotes, each of which runs one program at a time."""

    def __init__(self, number: int) -> None:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("CRASH_")}
        variables |= {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/crash/hook"), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "tests.crash.zygote"]
        self._all = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables, bufsize=1
            )
            for _ in range(number)
        ]
        self._free: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        for process in self._all:
            assert process.stdout is not None
            if process.stdout.readline() != "{}\n":
                raise RuntimeError("a zygote did not start; see above")
            self._free.put(process)

    def close(self) -> None:
        """End them."""
        for process in self._all:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def run(
        self,
        program: str,
        words: list[str],
        folder: Path,
        *,
        kill: str | None = None,
        counted: Path | None = None,
        limit: float = LIMIT,
        variables: dict[str, str] | None = None,
        **more: Any,
    ) -> Ended:
        """Run a program in a folder. kill: CRASH_KILL of `kill_points`. counted: CRASH_FOLDER (default: folder)."""
        with tempfile.TemporaryDirectory() as place:
            names = {name: str(Path(place, name)) for name in ("out", "err", "events")}
            own = {"CRASH_FOLDER": str(counted or folder), "CRASH_EVENTS": names.pop("events")}
            if "files" in more:  # the limit on file sizes applies to the list of changes, too
                own.pop("CRASH_FOLDER")
            own |= ({"CRASH_KILL": kill} if kill else {}) | (variables or {})
            job = {"program": program, "words": words, "folder": str(folder), "limit": limit, "variables": own}
            process = self._free.get()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(job | names | more) + "\n")
                answer = json.loads(process.stdout.readline())
            finally:
                self._free.put(process)
            out, err = (
                Path(name).read_text(errors="replace") if Path(name).exists() else "" for name in names.values()
            )
            events = Path(own["CRASH_EVENTS"])
            lines = events.read_bytes() if events.exists() else b""
        records = [lines[i : i + RECORD].decode(errors="replace").strip() for i in range(0, len(lines), RECORD)]
        return Ended(answer["status"], answer["seconds"], out, plain(err), tuple(records), answer["alone"])


@contextmanager
def zygotes(number: int) -> Iterator[Zygotes]:
    """A pool of zygotes for the block."""
    found = Zygotes(number)
    try:
        yield found
    finally:
        with suppress(OSError):
            found.close()
