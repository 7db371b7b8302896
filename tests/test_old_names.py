"""Names of version 0.1: they work as the new ones do, and say so."""

from dataclasses import replace

import pytest
import torch

import timecycle.ops
from timecycle.ops import Neighborhood, Select, affinity_propagate, topk_affinity
from timecycle.propagation.protocols import protocol


def test_options_of_the_operators():
    with pytest.warns(DeprecationWarning, match=r"normalise= is called softmax_over= now"):
        assert Select(5, 0.1, normalise="all") == Select(5, 0.1, softmax_over="all")
    with pytest.warns(DeprecationWarning, match=r"'kept' is called 'topk' now"):
        assert Select(5, 0.1, "joint", "kept") == Select(5, 0.1)
    with pytest.warns(DeprecationWarning, match="normalise= is called"):
        assert replace(Select(5, 0.1), normalise="all").softmax_over == "all"
    with pytest.warns(DeprecationWarning, match=r"Region is called"):
        assert timecycle.ops.Region is Neighborhood
    with pytest.warns(DeprecationWarning, match=r"reach is called"):
        assert Neighborhood(3, 3, 2).reach() == [1, 1]


def test_arguments_of_the_operators():
    features, frames, select = torch.eye(9)[None], torch.tensor([[0]]), Select(3, 0.1)
    options = {"neighborhood": Neighborhood(3, 3, 2), "multiplicity": torch.tensor([[2, 1]])}
    old = {"region": options["neighborhood"], "copies": options["multiplicity"]}
    expected = topk_affinity(features, features, frames, select, **options)
    with pytest.warns(DeprecationWarning, match=r"(region|copies)= is called (neighborhood|multiplicity)= now"):
        found = topk_affinity(features, features, frames, select, **old)
    assert all(map(torch.equal, found, expected))
    expected = affinity_propagate(features, features, frames, features, frames, select, **options)
    with pytest.warns(DeprecationWarning, match="= is called"):
        assert torch.equal(affinity_propagate(features, features, frames, features, frames, select, **old), expected)


def test_functions(capsys):
    for old, new in (("attend", "attention"), ("edge_affinity", "softmax_at")):
        with pytest.warns(DeprecationWarning, match=rf"{old} is called .*{new} now"):
            assert getattr(timecycle.ops, old) is getattr(timecycle.ops, new)
    with pytest.warns(DeprecationWarning, match=r"print_backends"):
        timecycle.ops.backends()
    assert "topk_affinity: reference: ready" in capsys.readouterr().out


def test_fields_of_a_protocol():
    with pytest.warns(DeprecationWarning, match="(normalise=|'kept') is called"):
        assert protocol("crw", normalise="kept") == protocol("crw")
    with pytest.warns(DeprecationWarning, match="normalise= is called"):
        assert protocol("crw", normalise="all").softmax_over == "all"
