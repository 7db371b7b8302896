"""evaluate_davis with callers' features under every protocol, from Python and from the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import test_davis
import timecycle
from tests.rank_cases import run_ranks
from tests.resnets import random_weights
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask, write_mask
from timecycle.errors import InputError
from timecycle.features.identity import identity
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import PRESETS
from timecycle.propagation.video import propagate


def patches(images: Tensor) -> Tensor:
    """The colors of 4 x 4 pixel patches: features of another stride than 8."""
    return torch.nn.functional.pixel_unshuffle(images[:, :, : images.shape[2] // 4 * 4, : images.shape[3] // 4 * 4], 4)


def lengthened(images: Tensor) -> Tensor:
    """Features of norm 10, for a protocol that does not normalize them."""
    found = patches(images)
    return 10 * torch.nn.functional.normalize(torch.cat([found, torch.ones_like(found)], dim=1), dim=1)


class Patches(nn.Module):
    """The same as a module that records the mode it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 48, H / 4, W / 4]."""
        self.modes.add(self.training)
        return patches(images) * self.scale


@pytest.mark.parametrize("name", PRESETS)
def test_every_protocol_scores_a_davis_folder(small_davis: Path, name):
    small = {} if PRESETS[name].resize == "native" else {"side": 64}
    scores = timecycle.evaluate_davis(
        lengthened if name == "uvc" else patches, small_davis, name, progress=False, k=3, **small
    )
    assert set(scores.sequences) == {"first", "second"}
    assert scores.global_["J-Mean"] > 0.6  # a red square on gray


def test_masks_equal_those_of_the_features_frame_by_frame(small_davis: Path, tmp_path):
    timecycle.evaluate_davis(patches, small_davis, "crw", save_path=tmp_path / "out", progress=False)
    frames = sorted((small_davis / "JPEGImages" / "480p" / "first").glob("*.jpg"))
    features = [patches(preprocess(read_rgb(path), PRESETS["crw"])[None])[0] for path in frames]
    first = read_mask(small_davis / "Annotations" / "480p" / "first" / "00000.png")
    for path, mask in list(zip(frames, propagate(features, first, "crw").masks, strict=True))[1:]:
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / "first" / f"{path.stem}.png"), mask)
    options = json.loads((tmp_path / "out" / "results.json").read_text())["options"]
    assert options["name"] == "crw"
    assert options["first"] == "copies"
    assert not (tmp_path / "out" / "overlays").exists()


def test_a_module_in_training_mode_is_restored(small_davis: Path):
    module = Patches().train()
    timecycle.evaluate_davis(module, small_davis, "dino", progress=False, side=64)
    assert module.training
    assert module.modes == {False}
    assert module.scale.grad is None


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (lambda images: images[0], r"returned torch.float32 \[3, 64, 64\] for images \[1, 3, 64, 64\]; expected"),
        (lambda images: (images, images), "the feature extractor returned tuple for images"),
        (lambda images: images.long(), "returned torch.int64"),
        (lambda images: images * float("nan"), r"features holds nan at \[0, 0, 0, 0\]"),
    ],
)
def test_bad_features_are_refused(small_davis: Path, features, sentence):
    with pytest.raises(InputError, match=sentence):
        timecycle.evaluate_davis(features, small_davis, "dino", progress=False, side=64)


def test_without_all_annotations_there_is_nothing_to_score(small_davis: Path):
    for path in sorted((small_davis / "Annotations" / "480p" / "second").glob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(InputError, match="second has an annotation of the first frame only"):
        timecycle.evaluate_davis(patches, small_davis, progress=False)


def test_ranks_share_the_sequences_and_agree(small_davis: Path, tmp_path):
    alone = timecycle.evaluate_davis(patches, small_davis, "dino", progress=False, side=64)
    body = f"""
        calls = []
        count = lambda images: (calls.append(1), patches(images))[1]
        scores = timecycle.evaluate_davis(count, {str(small_davis)!r}, "dino", progress=False, side=64)
        result = json.dumps([scores.to_json(), len(calls)])
    """
    for scores, calls in map(json.loads, run_ranks(tmp_path, body)):
        assert scores == alone.to_json()
        assert calls == 4  # the frames of one sequence


@pytest.fixture
def run(command_line, tmp_path, monkeypatch):
    """Run test_davis.py in a working directory that holds a module of features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_features.py").write_text("from tests.test_evaluate_davis import patches\nnumber = 3\n")
    return lambda *arguments: command_line(test_davis.main, *arguments)


def test_own_features_from_the_shell(run, small_davis: Path, tmp_path):
    arguments = ("--davis", small_davis, "--protocol", "dino", "--cropSize", 64, "--override", "k=7", "radius=3")
    ended = run(*arguments, "--features", "own_features:patches")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "out" / f"{small_davis.name}-patches-dino-64" / "results.json").read_text())
    expected = {"name": "dino", "k": 7, "radius": 3, "side": 64, "resize": "short side"}
    expected["features"] = f"own_features:patches {identity(patches)}"
    assert {name: results["options"][name] for name in expected} == expected
    assert results["scores"]["global"]["J-Mean"] > 0.6


def test_a_published_checkpoint_under_its_protocol_from_the_shell(run, small_davis: Path, tmp_path):
    weights = {f"encoder.model.{name}": value for name, value in random_weights(18).items()}
    torch.save({"model": weights}, tmp_path / "walk.pth")
    arguments = ("--davis", small_davis, "--protocol", "crw", "--save_path", "out")
    ended = run(*arguments, "--resume", "walk.pth")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scores"]["global"]["J-Mean"] > 0.4  # random features separate red from gray
    assert results["options"]["layout"] is None
    assert run(*arguments, "--resume", "walk.pth", "--layout", "crw-zeropad").code == 2  # of another network


def test_native_size(run, small_davis: Path, tmp_path):
    for name in ("first", "second"):  # 61 x 45: 8 divides neither side
        for path in (small_davis / "JPEGImages" / "480p" / name).glob("*.jpg"):
            with Image.open(path) as image:
                image.crop((0, 0, 61, 45)).save(path)
        for path in (small_davis / "Annotations" / "480p" / name).glob("*.png"):
            write_mask(path, read_mask(path)[:45, :61])
    ended = run("--davis", small_davis, "--cropSize", -1, "--save_path", "out")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["scores"]["global"]["J-Mean"] > 0.6
    assert read_mask(tmp_path / "out" / "first" / "00001.png").shape == (45, 61)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--protocol", "dyno"), "protocol is 'dyno'; expected 'dino'"),
        (("--override", "k"), "--override k has no value; expected FIELD=VALUE, such as k=7"),
        (("--override", "kk=3"), "'kk' is no field of a protocol; expected 'k' (there are name, resize"),
        (("--features", "own_features"), "--features is 'own_features'; expected some of network, color"),
        (("--features", "nowhere:f"), "--features nowhere:f cannot be imported: No module named 'nowhere'"),
        (("--features", "own_features:f"), "--features own_features:f cannot be imported"),
        (("--features", "own_features:number"), "--features own_features:number is a int; expected a callable"),
    ],
)
def test_bad_options_end_with_one_sentence_and_status_2(run, small_davis: Path, arguments, said):
    ended = run("--davis", small_davis, *arguments)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err
