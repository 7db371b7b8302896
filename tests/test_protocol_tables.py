"""The tables of docs/protocols.md: every field of a protocol shows, every preset has its paper, records compare."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import agreement, pitfalls
from docs import protocol_tables
from timecycle.models.encoder import Trunk
from timecycle.propagation.protocols import PRESETS, Protocol

CHANGES = {
    "resize": "square", "side": 128, "multiple": 24, "rounding": "ceil", "color": "lightness", "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6), "l2": False, "length": 99, "first": "twice", "radius": 77.0, "shape": "circle<=",
    "first_everywhere": True, "k": 33, "temperature": 0.123, "scope": "frame", "softmax_over": "all", "ties": "exact",
    "labels": "twice nearest", "classes": "full", "feedback": "min-max", "sharpen": 1.7, "refine": 3.0,
    "refine_eps": 0.5, "upsample": "opencv", "upsample_to": "output", "scale": "any", "islands": 0.7,
    "first_mask": "propagated",
}  # fmt: skip
"""Another value than preset dino's, by field."""


def words(rules: Protocol) -> list[str]:
    return [describe(rules) for columns in protocol_tables.TABLES.values() for describe in columns.values()]


@pytest.mark.parametrize("name", [field.name for field in fields(Protocol) if field.name != "name"])
def test_every_field_shows(name):
    rules = replace(PRESETS["dino"], refine=1.0) if name == "refine_eps" else PRESETS["dino"]
    assert getattr(rules, name) != CHANGES[name]
    assert words(rules) != words(replace(rules, **{name: CHANGES[name]}))


def test_every_published_preset_has_its_paper():
    assert set(protocol_tables.PUBLISHED) == set(PRESETS) - {"best"}
    assert protocol_tables.protocols().count("\n| `") == len(PRESETS)
    for about in protocol_tables.PUBLISHED.values():
        assert about["url"].startswith("https://arxiv.org/abs/")
        assert all(20 < score["J&F"] < 100 for score in about["scores"])
    mean = protocol_tables.PUBLISHED["timecycle"]["scores"][0]
    assert mean["J&F"] == (mean["J"] + mean["F"]) / 2


def test_a_share_of_equal_pixels_is_not_rounded_up():
    assert protocol_tables.equal_pixels([{"pixels": 10**7, "pixels apart": 1}]) == "99.9999 %"
    assert (
        protocol_tables.equal_pixels([{"pixels": 8, "pixels apart": 0}, {"pixels": 8, "pixels apart": 4}])
        == "75.0000 %"
    )
    assert protocol_tables.equal_pixels([{"pixels": 8, "pixels apart": 0}]) == "all"


def test_differences_from_a_record_are_counted():
    soft = np.array([[0.25, 0.5]])
    found = agreement.apart(soft, np.array([[0.25, 0.625]]), np.array([[[1, 2]]]), np.array([[[1, 3]]]))
    assert found == {"frames": 1, "pixels": 2, "pixels apart": 1, "soft apart": 0.125, "soft apart, mean": 0.0625}


def test_a_record_is_compared_as_the_results_file_says(shared: Path):
    name = "dinov3_vanish_a"
    stored = json.loads(agreement.RESULTS.read_text())["records"][name]
    found = agreement.recorded_preset(shared / "oracle" / "propagation" / f"{name}.npz")
    assert found.keys() == stored.keys()
    assert (found["pixels"], found["pixels apart"]) == (stored["pixels"], stored["pixels apart"])
    assert found["soft apart"] < 1e-5


def test_the_images_of_a_mistake_differ_as_it_says():
    rgb = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    torch.manual_seed(0)
    network = Trunk(18, 3, "reflect", 8).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        found = {name: encode(network, rgb) for name, encode in pitfalls.ENCODINGS.items()}
    usual, size = found.pop("usual")
    assert size == (240, 320)
    assert usual.shape[1:] == (30, 40)
    cut, stretched = found.pop("cut")
    assert stretched == (247, 327)
    assert cut.shape == usual.shape
    whole, size_of_whole = found.pop("whole")
    assert size_of_whole == (248, 328)
    assert whole.shape[1:] == (31, 41)
    assert all(working == size and not torch.equal(features, usual) for features, working in found.values())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_only_complete_rows_of_mistakes_are_shown():
    first, second, *_ = pitfalls.ROWS
    scores = {"a": [0.5, 0.5], "b": [0.25, 0.75]}
    rows = {first: {"with": {name: [0.4, 0.4] for name in scores}, "without": scores}, second: {"without": scores}}
    found = pitfalls.table({"rows": rows, "frames": 3, "short side": 240, "commit": "c", "sequences": ["a", "b"]})
    assert f"| {first} | 50.0 | 40.0 | -10.0 | 2, 0 |" in found
    assert second not in found
