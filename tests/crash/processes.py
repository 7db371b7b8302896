"""Programs run in forked processes (see `zygote`), a zygote for each that runs at a time."""

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
"""Seconds of a run, after which it hangs."""

KILLED = (-signal.SIGKILL, -signal.SIGALRM)
"""Statuses of a program that was killed: at a change, or by a timer after it."""

_ORPHANED = re.compile(
    r'Traceback \(most recent call last\):\n  File "<string>", line 1, in <module>\n(?:  .*\n)+'
    r"EOFError: Ran out of input\n"
)


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int | None
    """Exit status; minus the signal that ended it; None for one that did not end."""
    seconds: float
    out: str
    err: str
    events: tuple[str, ...]
    """Changes of its folder: process, kind and path."""
    alone: bool
    """Whether the processes that it had started ended with it."""

    def wrong(self, *statuses: int) -> str | None:
        """What is wrong with a run that should have ended with one of these; None if nothing is."""
        # A process that was just being started finds that the one which started it is gone, and says so.
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
        """What stderr ends with, if it is a sentence on what is wrong."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines and ("error: " in lines[-1]) else ""


def plain(text: str) -> str:
    """What a program said, without the names of this machine and its folders, as results are kept."""
    text = text.replace(sys.prefix, "VENV").replace(str(ROOT), ".")
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:]


class Zygotes:
    """Zygotes to run programs with, one program at a time each."""

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
        """Run a program in a folder. kill: as `kill_points` takes it. counted: where changes count (there)."""
        with tempfile.TemporaryDirectory() as place:
            names = {name: str(Path(place, name)) for name in ("out", "err", "events")}
            own = {"CRASH_FOLDER": str(counted or folder), "CRASH_EVENTS": names.pop("events")}
            if "files" in more:  # which bounds the list of changes too
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
    """Zygotes until the block ends."""
    found = Zygotes(number)
    try:
        yield found
    finally:
        with suppress(OSError):
            found.close()
