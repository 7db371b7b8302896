"""evaluate_davis with callers' features under every protocol, from Python and from the command line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import test_davis
import timecycle
from tests.assertions import raises_input_error
from tests.conftest import write_sequence
from tests.rank_cases import run_ranks
from tests.resnets import random_weights
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask, write_mask
from timecycle.errors import InputError
from timecycle.evaluation.davis.run import read_run
from timecycle.evaluation.davis.tables import Scores
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
    assert json.loads((tmp_path / "out" / "results.json").read_text())["device"] == "cpu"
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


def test_ranks_share_the_sequences_agree_and_write_one_page(small_davis: Path, tmp_path):
    alone, out = timecycle.evaluate_davis(patches, small_davis, "dino", progress=False, side=64), tmp_path / "out"
    body = f"""
        calls = []
        count = lambda images: (calls.append(1), patches(images))[1]
        options = dict(progress=False, side=64, save_path={str(out)!r}, report=True)
        scores = timecycle.evaluate_davis(count, {str(small_davis)!r}, "dino", **options)
        named = [name in scores.page.read_text() for name in scores.sequences]
        result = json.dumps([scores.to_json(), len(calls), str(scores.page), named])
    """
    for scores, calls, page, named in map(json.loads, run_ranks(tmp_path, body)):
        assert scores == alone.to_json()
        assert calls == 4  # the frames of one sequence
        assert (page, named) == (str(out / "report.html"), [True, True])
    assert [(out / f"rank{i}" / name / "00003.png").is_file() for i, name in ((0, "first"), (1, "second"))] == [
        True
    ] * 2
    assert sorted(path.name for path in (out / "report").iterdir()) == ["first", "second"]


def evaluated(davis: Path, **options: Any) -> Scores:
    """Of the patches, small."""
    return timecycle.evaluate_davis(patches, davis, "dino", progress=False, side=64, **options)


@pytest.fixture
def longer_davis(tmp_path: Path) -> Path:
    """A folder in DAVIS layout with four sequences of seven and six frames."""
    root = tmp_path / "longer"
    for name, frames in (("a", 7), ("b", 6), ("c", 7), ("d", 6)):
        write_sequence(root, name, frames)
    return root


def test_a_frame_stride_is_a_set_of_those_frames(longer_davis: Path, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(longer_davis, other)
    for path in [*other.rglob("*.jpg"), *other.rglob("*.png")]:
        if int(path.stem) % 2:
            path.unlink()
    strided = evaluated(longer_davis, frame_stride=2, save_path=tmp_path / "strided", report=True)
    direct = evaluated(other, save_path=tmp_path / "direct")
    assert strided.to_json() == direct.to_json()
    assert strided.files["a"] == ("00002.png", "00004.png")
    assert strided.files["b"] == ("00002.png",)
    masks = [
        sorted(path.relative_to(folder) for path in folder.rglob("*.png")) for folder in (strided.folder, direct.folder)
    ]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 2 * (4 + 3)
    for path in masks[0]:
        assert (strided.folder / path).read_bytes() == (direct.folder / path).read_bytes()
    assert evaluated(longer_davis).to_json() != strided.to_json()
    assert "frame stride" in strided.page.read_text()
    assert read_run(strided.folder).sequence("a").frames == tuple(
        sorted((longer_davis / "JPEGImages" / "480p" / "a").glob("*.jpg"))[::2]
    )


def test_stored_values_and_types_of_features_are_chosen(small_davis: Path, tmp_path):
    expected = evaluated(small_davis)
    for path in (small_davis / "Annotations").rglob("*.png"):
        Image.fromarray(read_mask(path) * 128).save(path)
    scores = evaluated(small_davis, remap={128: 1}, dtype="bfloat16", save_path=tmp_path / "out")
    assert scores.jf == pytest.approx(expected.jf, abs=0.05)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["options"]["dtype"] == "bfloat16"
    with raises_input_error("holds results made with dtype 'bfloat16', not 'float32'"):
        evaluated(small_davis, remap={128: 1}, save_path=tmp_path / "out")


def test_results_of_another_frame_stride_are_not_resumed(small_davis: Path, tmp_path):
    evaluated(small_davis, save_path=tmp_path / "out")
    with raises_input_error("holds results made with frame_stride 1, not 2"):
        evaluated(small_davis, frame_stride=2, save_path=tmp_path / "out")


def test_results_from_before_there_were_frame_strides_are_resumed(small_davis: Path, tmp_path):
    evaluated(small_davis, save_path=tmp_path / "out")
    file, mask = tmp_path / "out" / "results.json", tmp_path / "out" / "first" / "00001.png"
    content = json.loads(file.read_text())
    assert content["options"].pop("frame_stride") == 1
    file.write_text(json.dumps(content))
    before = mask.stat().st_mtime_ns
    evaluated(small_davis, save_path=tmp_path / "out")
    assert mask.stat().st_mtime_ns == before


def test_a_number_of_sequences_is_spread_over_the_list(longer_davis: Path):
    assert list(evaluated(longer_davis, sequences=2).sequences) == ["a", "c"]
    assert list(evaluated(longer_davis, sequences=3).sequences) == ["a", "b", "c"]
    assert list(evaluated(longer_davis, sequences=4).sequences) == ["a", "b", "c", "d"]
    assert list(evaluated(longer_davis, sequences=["d", "a"]).sequences) == ["a", "d"]


def test_overlays_and_a_page_are_written_when_asked_for(small_davis: Path, tmp_path):
    out = tmp_path / "out"
    scores = evaluated(small_davis, save_path=out)
    assert (scores.folder, scores.page) == (out, None)
    assert not (out / "overlays").exists()
    assert not (out / "report.html").exists()
    again = evaluated(small_davis, save_path=out, overlays=True, report=True)
    assert again.to_json() == scores.to_json()
    assert again.page == out / "report.html"
    assert "first" in again.page.read_text()
    assert (out / "overlays" / "second.mp4").stat().st_size > 0
    assert len(list((out / "overlays" / "first").glob("*.jpg"))) == 4
    video = (out / "overlays" / "first.mp4").stat().st_mtime_ns
    evaluated(small_davis, save_path=out, overlays=True)  # finished
    assert (out / "overlays" / "first.mp4").stat().st_mtime_ns == video


def test_a_page_of_others_is_refused_before_anything_is_computed(small_davis: Path, tmp_path):
    page = tmp_path / "out" / "report.html"
    page.parent.mkdir()
    page.write_text("mine")
    with raises_input_error("report.html was not made by this program"):
        evaluated(small_davis, save_path=tmp_path / "out", report=True)
    assert page.read_text() == "mine"
    assert not (tmp_path / "out" / "first").exists()


def test_a_set_with_first_annotations_only_gives_masks(small_davis: Path, tmp_path):
    (small_davis / "ImageSets" / "2017" / "val.txt").rename(small_davis / "ImageSets" / "2017" / "test-dev.txt")
    for name in ("first", "second"):
        for path in sorted((small_davis / "Annotations" / "480p" / name).glob("*.png"))[1:]:
            path.unlink()
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="2 of 2 sequences have an annotation of the first frame only"):
        scores = evaluated(small_davis, image_set="test-dev", save_path=out, overlays=True, report=True)
    assert scores.sequences == {}
    assert str(scores) == f"no scores; masks: {out}/<sequence>"
    assert scores.report().splitlines()[1].startswith("warning: 2 of 2 sequences have an annotation")
    assert (scores.scalars(), scores.worst()) == ({}, [])
    assert [path.name for path in sorted((out / "second").iterdir())] == [f"{i:05d}.png" for i in range(4)]
    assert scores.page.is_file()
    assert "scores" not in json.loads((out / "results.json").read_text())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"overlays": True}, "overlays is True without save_path; expected a save_path"),
        ({"report": True}, "report is True without save_path; expected a save_path"),
        ({"frame_stride": 0}, "frame_stride is 0; expected a whole number of frames, 1 or more"),
        ({"frame_stride": 1.5}, "frame_stride is 1.5; expected a whole number of frames"),
        ({"sequences": 3}, "sequences is 3; expected 1 to 2, as many as the set val has, or a list of names"),
        ({"sequences": 0}, "sequences is 0; expected 1 to 2"),
        ({"sequences": "first"}, "sequences is 'first'; expected a list of names, or a number"),
        ({"sequences": []}, "sequences is []; expected a list of names, or a number"),
        ({"sequences": ["third"]}, "third is not in the set val"),
        ({"dtype": "float31"}, "dtype is float31; expected"),
        ({"remap": {1: 2}, "threshold": 100}, "threshold"),
    ],
)
def test_bad_arguments_are_refused(small_davis: Path, options: dict[str, Any], sentence: str):
    with raises_input_error(sentence):
        evaluated(small_davis, **options)


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


def test_a_frame_stride_from_the_shell(run, small_davis: Path, tmp_path):
    arguments = ("--davis", small_davis, "--cropSize", 64)
    ended = run(*arguments, "--frame-stride", 2)
    assert ended.code == 0, ended.err
    assert "of one or two frames only" in ended.out + ended.err
    (out,) = (tmp_path / "out").iterdir()
    assert out.name.endswith("-64-stride2")
    assert [path.name for path in sorted((out / "first").iterdir())] == ["00000.png", "00002.png"]
    ended = run(*arguments, "--frame-stride", 0)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--frame-stride is 0; expected a whole number of frames" in ended.err


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
