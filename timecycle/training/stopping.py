"""A polite end: SIGTERM or Ctrl-C lets the step finish and the run be saved; a second one ends it at once."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within the context, the first SIGTERM or SIGINT is noted in `name` instead of ending the program."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
