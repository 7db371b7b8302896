"""The shipped weights: file size, metadata, no dependence on position, scores above an untrained network's."""

import itertools
import json
from pathlib import Path

import pytest
import safetensors
import torch
from torch.nn import functional

from timecycle import evaluate_davis, load_features
from timecycle.data.images import read_rgb
from timecycle.data.synthetic import make_davis
from timecycle.data.walk_datasets import Window
from timecycle.evaluation.davis.layout import read_davis
from timecycle.features.extractors import Extractor
from timecycle.features.named import SHIPPED
from timecycle.models.encoder import Trunk
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import protocol

CARD = SHIPPED.parent / "README.md"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "weights.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_davis(tmp_path_factory.mktemp("made"), frames=6, height=240, width=426, seed=23)


def untrained() -> Trunk:
    torch.manual_seed(0)
    return Trunk(18, 3, "reflect", 32)


def test_file_size_metadata_and_dtypes() -> None:
    assert SHIPPED.stat().st_size < 12e6
    with safetensors.safe_open(SHIPPED, "pt") as content:
        assert int(content.metadata()["steps"]) > 0
        kinds = {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118  (no mapping)
    assert kinds == {"F16", "I64"}


def test_the_model_card_shows_the_scores_of_these_weights() -> None:
    from timecycle.features.named import hash_of_weights

    results = json.loads(RESULTS.read_text())
    of_weights = [r["weights"] for r in results if "network" in r["features"]]
    assert of_weights
    assert set(of_weights) == {hash_of_weights(SHIPPED)}
    assert "<!-- generated: shipped network -->" in CARD.read_text()  # tests/test_docs.py compares it with the results


def same_place(network: Extractor, frames: list[torch.Tensor]) -> float:
    """The share of positions whose nearest neighbor in an unrelated image is at most one position away."""
    with torch.no_grad():
        maps = [functional.normalize(network(frame[None])[0].flatten(1), dim=0) for frame in frames]
    side = round(maps[0].shape[1] ** 0.5)
    own = torch.stack([torch.arange(side * side) // side, torch.arange(side * side) % side])
    shares = []
    for one, other in itertools.permutations(maps, 2):
        nearest = (one.T @ other).argmax(dim=1)
        found = torch.stack([nearest // side, nearest % side])
        shares.append(((found - own).abs().amax(dim=0) <= 1).float().mean().item())
    return sum(shares) / len(shares)


def test_features_do_not_encode_position(made: Path) -> None:
    """A network that encodes position matches it across unrelated images; chance is 3.5 %."""
    rules = protocol("crw")
    crops = [
        preprocess(Window(120, 60, 128, 128).cut([read_rgb(sequence.frames[0])], 128)[0], rules)
        for sequence in read_davis(made)
    ]
    assert same_place(load_features(SHIPPED), crops) < 0.25
    position = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    assert same_place(lambda images: torch.cat([position.cos(), position.sin()], dim=1), crops) > 0.9


def test_scores_are_above_those_of_an_untrained_network(made: Path) -> None:
    """On synthetic video that it was not trained on."""
    learned, other = (
        evaluate_davis(network, made, "crw", resize="short side", side=240, progress=False).global_["J&F-Mean"]
        for network in (load_features(SHIPPED), untrained())
    )
    assert learned > other + 0.1
