"""How programs end after errors of input, output or the machine: one sentence and a status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from timecycle.errors import InputError, listing, run_command_line, sentence

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from timecycle.errors import run_command_line

def main():
    for _ in range(int(sys.argv[1])):
        print("x" * 50)

run_command_line(main)
"""


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_full_output_is_a_sentence(lines):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        ended = ended_program(lines, stdout=full)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the output, or a file, cannot be read or written (No space left on device)")
    assert ended.stderr.count("\n") == 1


def test_a_closed_pipe_ends_the_program_silently():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        ended = ended_program(10_000, stdout=pipe)
    assert (ended.returncode, ended.stderr) == (141, "")


def ended_program(lines: int, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(lines)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, stderr=-1, text=True, timeout=60, check=False, **streams)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("x is 1; expected 2"), "x is 1; expected 2"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "a.jpg cannot be read or written (No such file"),
        (MemoryError(), "memory is used up; expected more"),
        (MemoryError("1 TiB for\nan array"), "memory is used up (1 TiB for an array)"),
    ],
)
def test_errors_of_the_environment_are_one_sentence(error, said, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit, match="2"):
        run_command_line(main)
    err = capsys.readouterr().err
    assert err == f"error: {sentence(error)}\n"
    assert said in err
    assert err.count("\n") == 1


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command_line(lambda: 1 // 0)


def test_long_lists_are_cut():
    assert listing("abcdefg") == "a, b, c, d, e and 2 more"


def test_names_that_are_not_utf8_are_printed_escaped():
    code = "from timecycle.errors import run_command_line; run_command_line(lambda: print('out/\\udcff'))"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert ended.stdout == b"out/\\udcff\n"
