"""What programs print while they work: bars, lines, notes, warnings; --quiet and --verbose."""

import io
import sys

import pytest

from tests.assertions import raises_input_error
from timecycle import progress
from timecycle.progress import Output, Progress, duration, printing, say, say_detail, take_output_options

PROGRAM = Output(lines=True)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic() of `timecycle.progress`; gives a function that lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_without_a_terminal_a_line_comes_at_once_and_then_every_half_minute(clock, capsys):
    with printing(PROGRAM), Progress(900, "frame", "camel") as bar:
        assert capsys.readouterr() == ("", "camel: 0 of 900 frames\n")
        for _ in range(29):
            clock(1)
            bar.update(3)
        assert capsys.readouterr().err == ""
        clock(1)
        bar.update(3)
        assert capsys.readouterr().err == "camel: 90 of 900 frames, 10.0 %, 3.0 frames/s, about 4 min left\n"
        bar.describe("dog")
        clock(29)
        bar.update(60)
        assert capsys.readouterr().err == ""
        clock(1)
        bar.update(0)
        assert capsys.readouterr().err == "dog: 150 of 900 frames, 16.7 %, 2.5 frames/s, about 5 min left\n"
    assert capsys.readouterr().err == ""


def test_an_unknown_total_is_left_out_and_slow_units_are_seconds_each(clock, capsys):
    with printing(PROGRAM), Progress(None, "video") as bar:
        assert capsys.readouterr().err == "0 videos\n"
        clock(40)
        bar.update()
        assert capsys.readouterr().err == "1 video, 40.0 s/video\n"


def test_units_finished_earlier_count_but_not_in_the_rate(clock, capsys):
    with printing(PROGRAM), Progress(100, "clip", initial=90) as bar:
        assert capsys.readouterr().err == "90 of 100 clips, 90.0 %\n"
        clock(50)
        bar.update(5)
        assert capsys.readouterr().err == "95 of 100 clips, 95.0 %, 10.0 s/clip, about 50 s left\n"


def test_short_work_with_a_delay_prints_nothing(clock, capsys):
    with printing(PROGRAM), Progress(10, delay=2.0) as bar:
        clock(1)
        bar.update(5)
        assert capsys.readouterr().err == ""
        clock(2)
        bar.update(5)
        assert capsys.readouterr().err == "10 of 10 frames, 100.0 %, 3.3 frames/s, about 0 s left\n"


@pytest.mark.parametrize(
    ("output", "shown"), [(Output(quiet=True, lines=True), True), (Output(), True), (PROGRAM, False)]
)
def test_nothing_is_shown_when_quiet_or_outside_a_program(output, shown, clock, capsys):
    with printing(output), Progress(10, shown=shown) as bar:
        clock(100)
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_no_work_prints_nothing(capsys):
    with printing(PROGRAM), Progress(0):
        pass
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with printing(PROGRAM), Progress(4, "frame", "camel") as bar:
        bar.update(4)
    shown = sys.stderr.getvalue()
    assert "camel: 100%" in shown
    assert "4/4" in shown
    monkeypatch.setattr(sys, "stderr", Terminal())
    with printing(Output(quiet=True)), Progress(4) as bar:
        bar.update(4)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("output", "out"),
    [(Output(), "a note\n"), (Output(quiet=True), ""), (Output(verbose=True), "a note\na detail\n")],
)
def test_notes_obey_quiet_and_warnings_go_to_stderr(output, out, capsys):
    with printing(output):
        say("a note")
        say_detail("a detail")
        say("warning: beware")
    assert capsys.readouterr() == (out, "warning: beware\n")


def test_output_options_are_taken_from_anywhere_but_after_two_dashes():
    words = ["--quiet", "a", "--debug", "--", "--verbose"]
    assert take_output_options(words) == (["a", "--", "--verbose"], Output(quiet=True, lines=True))
    assert take_output_options(["--verbose", "--cropSize", "64"]) == (
        ["--cropSize", "64"],
        Output(verbose=True, lines=True),
    )
    with raises_input_error("--quiet and --verbose are both given; expected one of them"):
        take_output_options(["--quiet", "--verbose"])


def test_the_output_of_a_program_ends_with_it(capsys):
    with pytest.raises(KeyError), printing(Output(quiet=True)):
        raise KeyError
    say("a note")
    assert capsys.readouterr().out == "a note\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5200, "87 min"), (5400, "1 h 30 min"), (7200, "2 h"),
        (86400, "1 day 0 h"), (3 * 86400 + 7200, "3 days 2 h"),
    ],
)  # fmt: skip
def test_durations_are_in_suitable_units(seconds, words):
    assert duration(seconds) == words
