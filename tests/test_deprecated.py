"""Names from before 0.1.0 still work, each with a DeprecationWarning at the line that uses it."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import timecycle
from timecycle import ops
from timecycle.ops import Neighborhood, Select, affinity_propagate, topk_affinity
from timecycle.propagation.protocols import Protocol, protocol

QUERY, BANK = torch.eye(4)[None], torch.eye(4).expand(2, 4, 4).contiguous()
FRAMES, COUNTS = torch.tensor([[0, 1]]), torch.tensor([[2, 1], [1, 0]])
SELECT, GRID = Select(2, 0.5), Neighborhood(2, 2, 1, "square<=")
CALL, LABELLED = (QUERY, BANK, FRAMES, SELECT), (QUERY, BANK, FRAMES, BANK, FRAMES, SELECT)


def warned_of(use: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of `use`, and the old names in its warnings, which must be of its first line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = use()
    for each in caught:
        assert each.category is DeprecationWarning
        assert (each.filename, each.lineno) == (__file__, use.__code__.co_firstlineno)
    return found, [str(each.message).partition(" is called ")[0] for each in caught]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (
            lambda: Select(2, 0.5, normalise="kept"),
            lambda: Select(2, 0.5, softmax_over="topk"),
            ["'kept'", "normalise="],
        ),
        (lambda: Select(2, 0.5, "joint", "kept"), lambda: Select(2, 0.5, "joint", "topk"), ["'kept'"]),
        (lambda: SELECT.normalise, lambda: SELECT.softmax_over, [".normalise"]),
        (lambda: ops.Region(2, 2, 1), lambda: Neighborhood(2, 2, 1), ["timecycle.ops.Region"]),
        (lambda: GRID.reach(), lambda: GRID.half_widths(), [".reach"]),
        (lambda: ops.attend, lambda: ops.attention, ["timecycle.ops.attend"]),
        (lambda: ops.edge_affinity, lambda: ops.softmax_at, ["timecycle.ops.edge_affinity"]),
        (lambda: protocol("dino", normalise="all"), lambda: protocol("dino", softmax_over="all"), ["normalise="]),
        (lambda: protocol("dino", colour="rgb"), lambda: protocol("dino", color="rgb"), ["colour="]),
        (lambda: protocol("crw").colour, lambda: protocol("crw").color, [".colour"]),
        (lambda: protocol("crw").region(2, 2), lambda: protocol("crw").neighborhood(2, 2), [".region"]),
        (
            lambda: Protocol("own", "native", first_mask="carried"),
            lambda: Protocol("own", "native", first_mask="propagated"),
            ["'carried'"],
        ),
    ],
)
def test_an_old_name_means_the_new_one(old, new, names):
    found, warned = warned_of(old)
    assert found == new()
    assert sorted(warned) == sorted(names)


@pytest.mark.parametrize(("function", "arguments"), [(topk_affinity, CALL), (affinity_propagate, LABELLED)])
def test_operators_take_keywords_by_their_old_names(function, arguments):
    found, warned = warned_of(lambda: function(*arguments, region=GRID, copies=COUNTS))
    expected = function(*arguments, neighborhood=GRID, multiplicity=COUNTS)
    assert sorted(warned) == ["copies=", "region="]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_new_names_are_silent():
    def use() -> None:
        topk_affinity(*CALL, neighborhood=GRID, multiplicity=COUNTS)
        timecycle.protocol("dino", softmax_over="all")

    assert warned_of(use)[1] == []


def test_modules_that_the_readme_named_are_there():
    import timecycle.checkpoint
    import timecycle.data.prepare
    import timecycle.prepare
    import timecycle.protocols
    import timecycle.scores

    assert timecycle.checkpoint.load_features is timecycle.load_features
    assert timecycle.protocols.Protocol is timecycle.Protocol
    assert timecycle.data.prepare.prepare_vlog is timecycle.prepare.prepare_vlog
    assert timecycle.scores.evaluate.__module__ == "timecycle.evaluation.davis.scores"


def test_the_old_command_of_preparation_runs_the_new_one():
    done = subprocess.run(
        [sys.executable, "-m", "timecycle.data.prepare", "davis", "--davis", "/nowhere", "--out", "list.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: /nowhere is not a folder; expected one in DAVIS layout\n")
