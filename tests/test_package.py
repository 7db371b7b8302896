"""The public names, help and types of the package."""

import importlib.util
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import timecycle


def test_public_names_exist_and_have_docstrings():
    assert set(timecycle.__all__) <= set(dir(timecycle))
    for name in timecycle.__all__:
        assert getattr(timecycle, name).__doc__, name
    assert not [name for name in dir(timecycle) if name.startswith("_") and not name.startswith("__")]


def test_operators_are_listed():
    import timecycle.ops

    assert {"topk_affinity", "affinity_propagate", "Select"} <= set(timecycle.ops.__all__) <= set(dir(timecycle.ops))


def test_a_star_import_brings_every_name():
    names = {}
    exec("from timecycle import *", names)
    assert set(timecycle.__all__) <= names.keys()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'timecycle' has no attribute 'propagete'"):
        timecycle.propagete  # noqa: B018  # the lookup is tested


def test_help_shows_the_public_functions():
    text = pydoc.plain(pydoc.render_doc(timecycle))
    for name in timecycle.__all__:
        assert name in text
    assert "mask: numpy.ndarray" in text  # signatures with their types


def test_types_are_shipped():
    assert (Path(timecycle.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("module", ["timecycle", "timecycle.evaluation.davis.scores", "timecycle.prepare"])
def test_importing_needs_no_torch(module):
    assert importlib.util.find_spec("torch")
    program = f"import sys; sys.modules['torch'] = None; import {module}"
    subprocess.run([sys.executable, "-c", program], check=True)
