"""A few of the kills, faults and hostile names of `python -m tests.crash`, and that it finds what is wrong."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("av", reason="PyAV is not installed")
if not Path("/proc/self/fd").is_dir():
    pytest.skip("processes are watched through /proc, which is Linux's", allow_module_level=True)

from tests.crash import environment, hostile
from tests.crash.hostile_places import CASES, Box, Command, share
from tests.crash.kills import Known, cycle, undisturbed
from tests.crash.processes import Zygotes, zygotes
from tests.crash.programs import PROGRAMS, Program, make_data


@pytest.fixture(scope="module")
def running() -> Iterator[Zygotes]:
    with zygotes(1) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash") / "data"
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def known(running, data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """Undisturbed runs, each made once."""
    return functools.cache(lambda name: undisturbed(running, PROGRAMS[name], data, tmp_path_factory.mktemp("known")))


@pytest.mark.parametrize(("name", "share"), [("evaluate", 0.3), ("evaluate", 0.8), ("train", 0.5), ("convert", 0.5)])
def test_a_killed_program_leaves_what_an_undisturbed_one_leaves(running, known, tmp_path: Path, name, share):
    one = known(name)
    _, killed, fault = cycle(running, tmp_path, one, 0, round(share * one.events), f"1/{name}/{share}")
    assert fault is None
    assert killed > 0


def test_what_a_careless_program_leaves_is_seen(running, data, tmp_path: Path):
    program = Program("careless", "call:careless", ("out",), 1, "out")
    careful = undisturbed(running, program, data, tmp_path)
    assert careful.events == 4
    # Before the change of number 3, which is the second file's.
    assert running.run("call:careless", ["out"], tmp_path, kill="own:3").status == -9
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
    faults = [cycle(running, tmp_path, careful, number, 2, f"1/careless/{number}")[2] for number in range(3)]
    assert any(fault and "out/second is missing" in fault["wrong"] for fault in faults)


FAULTS = {f"{fault.program}: {fault.name}": fault for fault in environment.faults()}


@pytest.mark.parametrize(
    "name", ["evaluate: room for 60%", "evaluate: out/overlays is a link", "convert: out is a file"]
)
def test_a_fault_of_the_environment_is_a_sentence(running, known, tmp_path: Path, name):
    fault = FAULTS[name]
    if fault.root and os.geteuid():
        pytest.skip("only root can mount a disk of a chosen size")
    _, done, wrong = environment.run(running, known(fault.program), fault, tmp_path / "fault")
    assert wrong is None
    assert done is not None
    assert done.status == 2
    assert done.sentence.startswith("error: ")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("listed", "../evil"),
        ("recorded", hostile.VICTIM),
        ("noted", ".."),
        ("video_name", "*"),
        ("point_video", "../x"),
    ],
)
def test_a_hostile_name_changes_nothing_outside(running, tmp_path: Path, place, name):
    share(tmp_path / "shared")
    _, wrong = hostile.run(running, tmp_path / "case", place, name, CASES[place])
    assert wrong is None


def test_a_change_outside_is_seen(running, tmp_path: Path):
    def make(box: Box, name: str) -> Command:
        return "call:careless", ["out"]

    _, wrong = hostile.run(running, tmp_path, "careless", "x", make)
    assert wrong == "box/own/beside was made"
