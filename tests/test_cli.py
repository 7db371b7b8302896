"""The command `timecycle`: its table of subcommands, help, options of every command, errors."""

import argparse
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import timecycle
from timecycle import cli
from timecycle.errors import InputError
from timecycle.progress import say, say_detail

ROOT = Path(__file__).parents[1]


def file_of(module: str) -> Path:
    """The source of a module."""
    return ROOT / f"{module.replace('.', '/')}.py"


@pytest.fixture
def run(command_line):
    """Run `timecycle` with words."""
    return lambda *words: command_line(lambda: cli.run(sys.argv[1:]), *words)


@pytest.fixture
def subcommand(monkeypatch):
    """A subcommand `echo`, whose module prints what it is told."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs="*")
        parser.add_argument("--fail", choices=["input", "error"])

    def work(arguments: argparse.Namespace) -> None:
        say(f"note {arguments.words}")
        say_detail("detail")
        if arguments.fail == "input":
            raise InputError("x is 1; expected 2")
        print("result")

    module = ModuleType("tests.echo")
    module.DESCRIPTION, module.EXAMPLES = "Print words.", "timecycle echo a\ntimecycle echo b"
    module.add_options, module.run = add_options, work
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.SUBCOMMANDS, "echo", cli.Subcommand(module.__name__, "print words"))
    return module


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--quiet", "--help")])
def test_the_help_fits_a_screen(run, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*words)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 79
    for name, command in cli.SUBCOMMANDS.items():
        assert f"  {name:10s}{command.help}" in lines


def test_the_version(run):
    assert run("--version").out == f"timecycle {timecycle.__version__}\n"


@pytest.mark.parametrize(
    "name", [name for name, command in cli.SUBCOMMANDS.items() if file_of(command.module).is_file()]
)
def test_every_subcommand_shows_two_examples_that_it_accepts(run, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(name, "--help")
    assert shown.code == 0
    assert shown.out.startswith(f"usage: timecycle {name} ")
    assert max(map(len, shown.out.splitlines())) <= 80
    module = cli._imported(name)
    examples = module.EXAMPLES.strip().splitlines()
    assert len(examples) == 2
    for example in examples:
        assert f"  {example}\n" in shown.out
        words = shlex.split(example.partition(" # ")[0].partition(" > ")[0])
        assert words[:2] == ["timecycle", name]
        cli.subcommand_parser(name, module, words[2:]).parse_args(words[2:])
    assert "--quiet" in shown.out


@pytest.mark.parametrize(("given", "nearest"), [("evalute", "evaluate"), ("scores", "score"), ("zzz", "")])
def test_an_unknown_subcommand_names_the_nearest(run, given, nearest):
    refused = run(given)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"timecycle has no command '{given}'; expected {nearest}" in refused.err


def test_an_unknown_option_before_the_subcommand_is_refused(run):
    refused = run("--fps", "score")
    assert refused.code == 2
    assert "unrecognized arguments: --fps" in refused.err


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("echo", "a"), ["note ['a']", "result"]),
        (("echo", "a", "--quiet"), ["result"]),
        (("--quiet", "echo", "a"), ["result"]),
        (("echo", "--debug", "a", "b"), ["note ['a', 'b']", "result"]),
        (("echo", "--", "--quiet"), ["note ['--quiet']", "result"]),
    ],
)
def test_quiet_works_before_and_after_the_subcommand(run, subcommand, words, out):
    done = run(*words)
    assert (done.code, done.out.splitlines()) == (0, out)


@pytest.mark.parametrize("words", [("--verbose", "echo"), ("echo", "--verbose")])
def test_verbose_adds_versions_time_and_memory(run, subcommand, words):
    lines = run(*words).out.splitlines()
    assert lines[0].startswith(f"timecycle {timecycle.__version__}, Python 3.")
    assert lines[1:4] == ["note []", "detail", "result"]
    assert lines[4].endswith(" MB")


def test_quiet_and_verbose_are_refused_together(run, subcommand):
    refused = run("--quiet", "echo", "--verbose")
    assert refused.code == 2
    assert "--quiet and --verbose are both given; expected one of them" in refused.err


@pytest.mark.parametrize("words", [("--debug", "echo"), ("echo", "--debug"), ("echo",)])
def test_debug_prints_a_traceback_of_bad_input(run, subcommand, words):
    refused = run(*words, "--fail", "input")
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == "error: x is 1; expected 2"
    assert ("Traceback" in refused.err) == ("--debug" in words)


def test_a_module_that_cannot_be_imported_is_a_sentence(run, monkeypatch):
    monkeypatch.setitem(cli.SUBCOMMANDS, "echo", cli.Subcommand("tests.not_there", "print words"))
    refused = run("echo")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "timecycle echo cannot be loaded (No module named 'tests.not_there')" in refused.err


@pytest.mark.parametrize("words", [["--help"], ["score", "--help"], ["prepare", "--help"], ["doctor", "--help"]])
def test_help_does_not_import_torch(words):
    code = f"import sys; sys.modules['torch'] = None; from timecycle.cli import run; run({words!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: timecycle ")


def test_the_table_imports_no_module_of_a_subcommand():
    code = "import sys, timecycle.cli; print(*[n for n in sys.modules if n in ('numpy', 'cv2', 'tqdm', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


SCRIPTS = {
    "test_davis.py": "python test_davis.py",
    "train.py": "train.py",
    "timecycle.scores": "python -m timecycle.scores",
    "timecycle.prepare": "python -m timecycle.prepare",
    "timecycle.checkpoint": "python -m timecycle.checkpoint convert",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_older_programs_are_the_subcommands(script, monkeypatch, capsys):
    called = SCRIPTS[script]
    monkeypatch.setattr(sys, "argv", [script, *(["convert"] if "convert" in called else []), "--help"])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    file = ROOT / script if script.endswith(".py") else file_of(script)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(file), run_name="__main__")
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {called} ")
    assert f"  {called} " in text[text.index("examples:") :]


def test_the_entry_point_is_the_module(monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"timecycle": "timecycle.cli:main"}
    monkeypatch.setattr(sys, "argv", ["timecycle", "--version"])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("timecycle", run_name="__main__")
    assert capsys.readouterr().out == f"timecycle {timecycle.__version__}\n"
