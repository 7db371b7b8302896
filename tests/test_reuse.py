"""Existing results are continued only if they are of the same features and files."""

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import test_davis
import timecycle
from tests.rank_cases import run_ranks
from tests.test_evaluate_davis import patches
from timecycle.data.masks import read_mask, write_mask
from timecycle.errors import InputError
from timecycle.features.extractors import CallableExtractor

SMALL = {"protocol": "dino", "side": 64, "progress": False}


class Weighted(nn.Module):
    """Colors of patches, each with a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(48, 1, 1))
        with torch.no_grad():
            self.weight[:24] = weight

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 48, H / 4, W / 4]."""
        return patches(images) * self.weight


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """An entry for each frame that is encoded."""
    seen: list[int] = []
    plain = CallableExtractor.__call__
    monkeypatch.setattr(CallableExtractor, "__call__", lambda self, images: (seen.append(1), plain(self, images))[1])
    return seen


def test_a_loop_scores_the_weights_of_each_epoch(small_davis: Path, tmp_path, calls):
    net, out = Weighted(1.0), tmp_path / "out"
    first = timecycle.evaluate_davis(net, small_davis, save_path=out, **SMALL)
    assert (len(calls), first.folder) == (8, out)
    again = timecycle.evaluate_davis(net, small_davis, save_path=out, **SMALL)
    assert (len(calls), again.to_json()) == (8, first.to_json())
    with torch.no_grad():
        net.weight.zero_()  # red and gray become equal
    alone = timecycle.evaluate_davis(net, small_davis, **SMALL)
    del calls[:]
    second = timecycle.evaluate_davis(net, small_davis, save_path=out, **SMALL)
    assert (len(calls), second.folder) == (8, tmp_path / "out-2")
    assert second.to_json() == alone.to_json()
    assert second.jf < first.jf - 0.1
    assert (out / "first" / "00003.png").is_file()  # the earlier results stay
    third = timecycle.evaluate_davis(net, small_davis, save_path=out, **SMALL)
    assert (len(calls), third.folder) == (8, tmp_path / "out-2")


def test_results_of_features_without_identity_are_continued_only_with_reuse(small_davis: Path, tmp_path, calls):
    net, out = Weighted(1.0), tmp_path / "out"
    net.lock = threading.Lock()
    folders = [timecycle.evaluate_davis(net, small_davis, save_path=out, **SMALL).folder for _ in range(2)]
    assert folders == [out, tmp_path / "out-2"]
    del calls[:]
    assert timecycle.evaluate_davis(net, small_davis, save_path=out, reuse=True, **SMALL).folder == out
    assert not calls


def test_results_of_another_year_are_refused(small_davis: Path, tmp_path):
    (small_davis / "ImageSets" / "2016").mkdir()
    (small_davis / "ImageSets" / "2016" / "val.txt").write_text("first\n")
    timecycle.evaluate_davis(patches, small_davis, year=2016, save_path=tmp_path / "out", **SMALL)
    with pytest.raises(InputError, match=r"out holds results made with masks .*'single': True"):
        timecycle.evaluate_davis(patches, small_davis, save_path=tmp_path / "out", **SMALL)


def test_reused_results_keep_the_identity_of_their_features(small_davis: Path, tmp_path, calls):
    one, two, out = Weighted(1.0), Weighted(0.0), tmp_path / "out"
    first = timecycle.evaluate_davis(one, small_davis, save_path=out, **SMALL)
    assert timecycle.evaluate_davis(two, small_davis, save_path=out, reuse=True, **SMALL).jf == first.jf
    del calls[:]
    again = timecycle.evaluate_davis(two, small_davis, save_path=out, **SMALL)
    assert len(calls) == 8
    assert again.jf == timecycle.evaluate_davis(two, small_davis, **SMALL).jf


def test_a_folder_without_a_finished_sequence_is_used_for_other_features(small_davis: Path, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"first/00000\.jpg: the feature extractor failed"):
        timecycle.evaluate_davis(lambda x: x / "2", small_davis, save_path=out, **SMALL)
    assert timecycle.evaluate_davis(patches, small_davis, save_path=out, **SMALL).folder == out


def test_bad_results_folders_and_options_are_refused(small_davis: Path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be written \(File exists\); expected a place"):
        timecycle.evaluate_davis(patches, small_davis, save_path=tmp_path / "file", **SMALL)
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match=r"results.json is damaged or not JSON .*; expected what an earlier run"):
        timecycle.evaluate_davis(patches, small_davis, save_path=tmp_path, **SMALL)
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used"):
        timecycle.evaluate_davis(patches, small_davis, device="cuda:99", **SMALL)
    with pytest.raises(InputError, match="--threshold is '128'"):
        timecycle.evaluate_davis(patches, small_davis, threshold="128", **SMALL)


def test_frames_that_changed_are_evaluated_again(small_davis: Path, tmp_path, calls):
    net = Weighted(1.0)
    timecycle.evaluate_davis(net, small_davis, save_path=tmp_path / "out", **SMALL)
    del calls[:]
    path = small_davis / "Annotations" / "480p" / "second" / "00000.png"
    write_mask(path, np.roll(read_mask(path), 5, axis=1))
    timecycle.evaluate_davis(net, small_davis, save_path=tmp_path / "out", **SMALL)
    assert len(calls) == 4  # of the second sequence
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "second" / "00000.png"), read_mask(path))


@pytest.fixture
def run(command_line, tmp_path, monkeypatch):
    """Run test_davis.py in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda *arguments: command_line(test_davis.main, *arguments)


def write_module(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(
        f"import torch, threading\nfrom tests.test_evaluate_davis import patches\n{body}"
    )
    return f"{name}:extract"


def test_the_command_refuses_to_mix_features(run, small_davis: Path, tmp_path):
    arguments = ("--davis", small_davis, "--protocol", "dino", "--cropSize", 64, "--save_path", "out", "--features")
    body = "weight = torch.ones(48, 1, 1)\ndef extract(x): return patches(x) * weight\n"
    one = write_module(tmp_path, "module_one", body)
    assert run(*arguments, one).code == 0
    again = run(*arguments, one)
    assert (again.code, "resuming" in again.out) == (0, True)
    sys.modules["module_one"].weight[3] = 2
    changed = run(*arguments, one)
    assert (changed.code, changed.err.count("\n")) == (2, 1)
    assert "out holds results made with features" in changed.err
    assert "--overwrite" in changed.err
    assert run(*arguments, one, "--reuse").code == 0
    body = "lock = threading.Lock()\ndef extract(x): return patches(x + bool(lock) - 1)\n"
    other = (*arguments[:-2], "other", "--features", write_module(tmp_path, "module_two", body))
    assert run(*other).code == 0
    refused = run(*other)
    said = "these features cannot be identified; expected another --save_path, --overwrite to start over, or --reuse"
    assert (refused.code, said in refused.err) == (2, True)
    assert run(*other, "--overwrite").code == 0


def test_ids_with_gaps_are_noted_and_compacted(run, small_davis: Path, tmp_path):
    for path in (small_davis / "Annotations" / "480p" / "first").glob("*.png"):
        write_mask(path, read_mask(path) * 9)
    arguments = ("--davis", small_davis, "--cropSize", 64, "--features", "colour")
    ended = run(*arguments, "--save_path", "out")
    assert ended.code == 0
    assert "warning: " in ended.err
    assert "holds the id 9 of 1 to 9" in ended.err
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert list(scores["sequences"]["first"]) == ["9"]
    assert run(*arguments, "--save_path", "compact", "--remap", "compact").code == 0
    compact = json.loads((tmp_path / "compact" / "results.json").read_text())["scores"]
    assert compact["global"] == compact["official"] == scores["global"]
    assert scores["official"]["J-Mean"] == pytest.approx((8 + 2 * scores["global"]["J-Mean"]) / 10)
    np.testing.assert_array_equal(
        read_mask(tmp_path / "compact" / "first" / "00002.png") * 9, read_mask(tmp_path / "out" / "first" / "00002.png")
    )


def test_evaluate_davis_has_the_commands_abilities(small_davis: Path, tmp_path):
    for path in (small_davis / "Annotations" / "480p" / "first").glob("*.png"):
        write_mask(path, read_mask(path) * 255)
    for path in sorted((small_davis / "Annotations" / "480p" / "second").glob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(InputError, match="remap-255"):
        timecycle.evaluate_davis(patches, small_davis, **SMALL)
    with pytest.raises(InputError, match="second has an annotation of the first frame only"):
        timecycle.evaluate_davis(patches, small_davis, remap_255=True, **SMALL)
    with pytest.warns(
        UserWarning, match="1 of 2 sequences have an annotation of the first frame only and are left out"
    ):
        scores = timecycle.evaluate_davis(patches, small_davis, remap_255=True, save_path=tmp_path / "out", **SMALL)
    assert list(scores.sequences) == ["first"]
    assert scores.jf > 0.6
    assert "are left out of the means: second" in scores.notes[0]
    assert read_mask(tmp_path / "out" / "second" / "00003.png").any()
    (small_davis / "ImageSets" / "2016").mkdir()
    (small_davis / "ImageSets" / "2016" / "val.txt").write_text("first\n")
    assert timecycle.evaluate_davis(patches, small_davis, year="2016", **SMALL).jf == scores.jf
    options = {"sequences": ["first"], "remap_255": True, "dtype": torch.bfloat16}
    assert timecycle.evaluate_davis(patches, small_davis, **options, **SMALL).jf > 0.6


def test_the_error_of_a_rank_is_raised_on_every_rank(small_davis: Path, tmp_path):
    body = f"""
        def extract(images):
            if rank == 1:
                raise RuntimeError("no memory left")
            return patches(images)
        try:
            timecycle.evaluate_davis(extract, {str(small_davis)!r}, "dino", progress=False, side=64)
        except timecycle.errors.InputError as error:
            result = str(error)
    """
    said = run_ranks(tmp_path, body)
    assert all("no memory left" in text for text in said)
    assert said[0].startswith("rank 1 of 2 failed: ")


def test_results_of_version_0_1_are_continued(small_davis: Path, run, tmp_path):
    arguments = ("--davis", small_davis, "--cropSize", 64, "--features", "colour", "--save_path", "out")
    assert run(*arguments).code == 0
    path = tmp_path / "out" / "results.json"
    content = json.loads(path.read_text())
    assert content["options"]["features"] == "color"
    assert (content["options"].pop("color"), content["options"].pop("first_mask")) == ("rgb", "given")
    content["options"] |= {"colour": "rgb", "first_mask": "carried", "features": "colour"}
    for entry in content["sequences"].values():
        entry["features"] = "colour"
    path.write_text(json.dumps(content))
    again = run(*arguments)
    assert (again.code, "2 of 2 sequences are finished" in again.out) == (0, True)
    assert json.loads(path.read_text())["sequences"]["first"]["features"] == "color"


def test_the_first_mask_is_the_annotation_unless_overridden(small_davis: Path, run, tmp_path):
    arguments = ("--davis", small_davis, "--cropSize", 64, "--features", "colour", "--save_path")
    assert run(*arguments, "out").code == 0
    assert run(*arguments, "other", "--override", "first_mask=carried").code == 0
    first = [read_mask(tmp_path / out / "second" / "00000.png") for out in ("out", "other")]
    annotation = read_mask(small_davis / "Annotations" / "480p" / "second" / "00000.png")
    np.testing.assert_array_equal(first[0], annotation)
    assert not np.array_equal(first[1], annotation)
