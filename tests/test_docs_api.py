"""The API reference has all public names, names nothing that is not there, and shows docstrings as they are meant."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import timecycle
import timecycle.ops
from timecycle.cli import SUBCOMMANDS

PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
PUBLIC = [
    *(f"timecycle.{name}" for name in timecycle.__all__),
    *(f"timecycle.ops.{name}" for name in timecycle.ops.__all__),
]


def documented(modules: bool = False) -> list[str]:
    """Full names of what the directives of the pages show, or of the modules that they name."""
    found = []
    for page in PAGES:
        module = ""
        for kind, name in re.findall(r"^\.\. (auto\w+|currentmodule):: ([\w.]+)", page.read_text(), re.MULTILINE):
            of_module = kind in ("currentmodule", "automodule")
            module = name if of_module else module
            if of_module == modules:
                found.append(name if "." in name else f"{module}.{name}")
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_in_the_reference(name):
    assert name in documented(modules=name == "timecycle.ops")


@pytest.mark.parametrize("name", sorted({*documented(), *PUBLIC}))
def test_what_is_in_the_reference_exists_and_has_a_docstring(name):
    module, _, name = name.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if inspect.isclass(found) or inspect.isroutine(found):
        assert found.__doc__
        assert not found.__doc__.startswith(f"{name}(")  # what a dataclass has that is given none


@pytest.mark.parametrize("name", sorted(set(documented(modules=True))))
def test_a_module_that_the_reference_names_exists(name):
    assert importlib.import_module(name).__doc__


def test_every_page_is_in_the_index():
    index = next(page for page in PAGES if page.name == "index.md").read_text()
    for page in PAGES:
        assert page.name == "index.md" or (f"]({page.name})" in index and f"\n{page.stem}\n" in index)


def test_the_help_text_of_every_command_is_on_its_page():
    page = next(page for page in PAGES if page.name == "command_line.md").read_text()
    for name in SUBCOMMANDS:
        assert re.search(rf"{{command-help}} {name}\b", page)


def test_a_help_text_is_what_the_program_prints():
    pytest.importorskip("sphinx", reason="Sphinx, which builds the pages, is not installed")
    from docs.command_help import COLUMNS, help_text

    text = help_text("score")
    assert text.startswith("usage: timecycle score")
    assert "--results" in text
    assert max(map(len, text.splitlines())) <= int(COLUMNS)


CASES = [
    (
        "A `name` and `k=7`; --topk, a*b, |x| and end_.",
        r"A `name` and ``k=7``; ``--topk``, a\*b, \|x\| and end\_." + "\n",
    ),
    (
        "Read it. Raises InputError if it\nis damaged.",
        "Read it.\n\n:raises InputError: if it is damaged.\n",
    ),
    (
        "Read it.\n\nArgs:\n    path: a file\n        of text.\n    *rest, size: more.\n\nReturns the text.\n\n"
        "Source: a paper.",
        "Read it.\n\n:param path: a file of text.\n:param \\*rest: more.\n:param size: more.\n:returns: The text.\n\n"
        "Source: a paper.\n",
    ),
    (
        "Sum.\n\nReturns:\n    out [B], float32: the\n    sum.\n\nRaises:\n    InputError: no `x`.",
        "Sum.\n\n:returns: out [B], float32: the sum.\n:raises InputError: no `x`.\n",
    ),
    ("Formula:\n\n    y = a * x", "Formula:\n\n.. code-block:: python\n\n   y = a * x\n"),
    ("Formula:\n\n    y[n] = <a, x>  for all n", "Formula:\n\n.. code-block:: text\n\n   y[n] = <a, x>  for all n\n"),
    (
        "Letters:\n\n    B  targets  N  `keys`\n    long  what\n          it is",
        "Letters:\n\n.. list-table::\n\n   * - ``B``\n     - targets\n   * - ``N``\n     - `keys`\n   * - ``long``\n"
        "     - what it is\n",
    ),
]


@pytest.mark.parametrize(("docstring", "expected"), CASES)
def test_a_docstring_becomes_restructured_text(docstring, expected):
    pytest.importorskip("sphinx", reason="Sphinx, which builds the pages, is not installed")
    from docs.docstrings import restructured

    assert restructured(docstring) == expected


def test_old_names_are_left_out_and_options_of_a_class_added():
    pytest.importorskip("sphinx", reason="Sphinx, which builds the pages, is not installed")
    from docs.docstrings import _process, _skip
    from timecycle.propagation.protocols import Protocol
    from timecycle.training.settings import CropWalkSettings

    assert _skip(None, "class", "colour", vars(Protocol)["colour"], False, None)
    assert not _skip(None, "class", "select", Protocol.select, False, None)
    lines = ["Settings."]
    _process(None, "class", "CropWalkSettings", CropWalkSettings, None, lines)
    shown = [line.removeprefix(".. py:attribute:: ") for line in lines if line.startswith(".. py:attribute::")]
    assert sorted(shown) == ["batch", "crop_side", "max_frame_gap", "width"]
