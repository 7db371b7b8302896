"""train.py: the files of a run, resuming with bitwise equality, evaluation during training, refusals."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import copy_list
from tests.tiny_training import CYCLE, GRID, WALK, TinyEncoder
from tests.training_runs import assert_same, assert_same_run, latest, log
from timecycle.data.images import read_rgb
from timecycle.data.synthetic import make_davis

ROOT = Path(__file__).parents[1]


def test_without_data_it_trains_on_synthetic_video(tiny):
    done = tiny("--steps", 2, "-c", "run", "--crop-side", 32, "--synthetic-clips", 2, "--workers", 0)
    assert done.code == 0, done.err
    assert "no data given: learning from synthetic video, at sizes for a demonstration" in done.out
    settings = json.loads(Path("run/settings.json").read_text())["settings"]
    assert {name: settings[name] for name in ("objective", "width", "minutes", "crop_side")} == {
        "objective": "walk", "width": 16, "minutes": 1.0, "crop_side": 32,
    }  # fmt: skip


def test_files_and_output_of_a_run(tiny):
    done = tiny(*CYCLE, "-c", "run", "--log-every", 2, "--visualize-every", 2, "-e", "--classNum", 49)
    assert done.code == 0, done.err
    assert "6 clips from list.txt; 4 steps of 4 samples" in done.out
    assert "accepted without effect, as they do not change the result here: --evaluate, --classNum" in done.out
    assert done.out.count("frame_side=64") == 1
    assert re.search(r"step 2/4  loss \S+  \(skip .*\)  \S+ samples/s  \d+ MB  \d:\d\d:\d\d left", done.out)
    assert "over the first 1 of 4 steps" in done.out
    stored = json.loads(Path("run/settings.json").read_text())
    assert stored["settings"]["batch"] == 4
    assert stored["runs"][0]["command"][1:3] == ["--filelist", "list.txt"]
    assert stored["runs"][0]["versions"]["torch"] == torch.__version__
    assert [line["step"] for line in log("run")] == [1, 2, 3, 4]
    assert {"loss", "skip", "inliers", "cycle/1", "gradient", "lr"} <= log("run")[0].keys()
    # Patch, four frames, target, affinity: each at twice its size and followed by 4 pixels; titles, color bar, legend.
    assert read_rgb(Path("run/images/0000004.jpg")).shape == (18 + 128 + 18 + 18, (56 * 2 + 4) + 6 * (64 * 2 + 4), 3)
    encoder = TinyEncoder()
    encoder.load_state_dict(safetensors.torch.load_file("run/encoder.safetensors"))
    learned = latest("run")["model"]
    assert_same(dict(encoder.state_dict()), {name: learned[f"encoder.{name}"] for name in encoder.state_dict()})


def test_walks_over_crops_and_over_a_grid(tiny):
    assert tiny(*WALK, "-c", "crops", "--visualize-every", 6).code == 0
    assert read_rgb(Path("crops/images/0000006.jpg")).shape[1] == 4 * (32 * 2 + 4)
    done = tiny(*GRID, "--cell-side", 16, "-c", "grid", "--visualize-every", 6)
    assert done.code == 0, done.err
    assert read_rgb(Path("grid/images/0000006.jpg")).shape[1] == 4 * (48 * 2 + 4)
    for folder in ("crops", "grid"):
        assert {"nll/3", "accuracy/3"} <= log(folder)[0].keys()


def test_a_resumed_run_equals_an_uninterrupted_one(tiny):
    """In the middle of an epoch, with another number of workers; the log and TensorBoard too."""
    options = (*WALK, "--schedule", "constant")
    assert tiny(*options, "-c", "whole").code == 0
    assert tiny(*options, "--steps", 3, "-c", "parts").code == 0
    with Path("parts/log.jsonl").open("a") as file:  # of a killed process that got further
        file.write('{"step": 4, "loss": 0}\n{"step": 5, "lo')
    resumed = tiny(*options, "-c", "parts", "--resume", "auto", "--workers", 1)
    assert resumed.code == 0, resumed.err
    assert "going on from parts/checkpoint_0000003.pt, step 3" in resumed.out
    assert_same_run("parts", "whole")
    board = EventAccumulator("parts/tensorboard").Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [run["from_step"] for run in json.loads(Path("parts/settings.json").read_text())["runs"]] == [0, 3]


def test_a_signal_saves_and_stops(tiny):
    options = (*CYCLE, "--schedule", "cosine", "--warmup", 2)
    assert tiny(*options, "-c", "whole").code == 0
    stopped = tiny(*options, "-c", "parts", fault="signal:SIGINT:3")
    assert stopped.code == 0, stopped.err
    assert "stopped by SIGINT after step 3; --resume auto goes on" in stopped.out
    assert latest("parts")["progress"]["step"] == 3
    # All other settings are in the checkpoint.
    assert tiny("--resume", "parts/checkpoint_0000003.pt").code == 0
    assert_same_run("parts", "whole")


def test_sigterm_ends_a_program_with_status_0(tmp_path, training_frames):
    copy_list(training_frames, tmp_path)
    command = [sys.executable, "-m", "tests.tiny_training", *WALK, "--steps", "1000", "-c", str(tmp_path / "run")]
    command[command.index("--workers") + 1] = "1"
    environment = {**os.environ, "TINY_FAULT": "signal:SIGTERM:2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "stopped by SIGTERM after step 2" in done.stdout
    assert latest(tmp_path / "run")["progress"]["step"] == 2


def test_a_run_with_a_nan_loss_is_resumed_before_it(tiny):
    """With the batch statistics and random states from before the failed step."""
    assert tiny(*WALK, "-c", "whole").code == 0
    failed = tiny(*WALK, "-c", "parts", fault="nan:4")
    assert failed.code == 2
    assert re.search(r"error: the loss of step 4 is nan with the samples \S+clip\d from frame \d+, ", failed.err)
    assert "all earlier steps are kept in parts/checkpoint_0000003.pt" in failed.err
    assert tiny(*WALK, "-c", "parts", "--resume", "auto").code == 0
    assert_same_run("parts", "whole")


def test_damaged_clips_are_skipped_and_listed_once(tiny):
    for path in Path("clip1").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    done = tiny(*WALK, "--batchSize", 6, "--save-every", 2, "-c", "run")
    assert done.code == 0, done.err
    skipped = [line for line in done.out.splitlines() if line.startswith("skipped")]
    assert re.match(r"skipped \S+clip1: \S+clip1/0000\d\d.jpg cannot be read as an image", skipped[0])
    assert skipped[1] == "skipped and replaced by others: 6 times, 1 clips"
    assert len(skipped) == 2
    assert sum(latest("run")["skipped"].values()) == 6  # each step takes every clip


def test_only_the_newest_checkpoints_are_kept(tiny):
    assert tiny(*WALK, "--save-every", 1, "--keep", 2, "-c", "run").code == 0
    assert sorted(path.name for path in Path("run").glob("*.pt")) == [
        "checkpoint_0000005.pt",
        "checkpoint_0000006.pt",
        "latest.pt",
    ]
    # Newer checkpoints are not discarded; an older one can be resumed in another folder.
    refused = tiny("--resume", "run/checkpoint_0000005.pt")
    assert "run/checkpoint_0000006.pt is newer than run/checkpoint_0000005.pt; expected the newest, or" in refused.err
    assert tiny("--resume", "run/checkpoint_0000005.pt", "-c", "branch").code == 0
    assert_same(latest("branch")["model"], latest("run")["model"])
    assert [line["step"] for line in log("branch")] == [6]
    # A damaged one is passed over for the one before.
    whole = latest("run")
    newest = Path("run/checkpoint_0000006.pt")
    newest.write_bytes(newest.read_bytes()[:1000])
    again = tiny("-c", "run", "--resume", "auto")
    assert "going on from run/checkpoint_0000005.pt" in again.out
    assert_same(latest("run")["model"], whole["model"])


def test_the_best_is_kept_by_score(tiny, small_davis):
    options = (*WALK, "--evaluate-on", small_davis, "--save-every", 100, "--keep", 1)
    done = tiny(*options, "--evaluate-every", 2, "-c", "run")
    assert done.code == 0, done.err
    scores = {int(step): float(score) for step, score in re.findall(r"step (\d): J&F (\S+)", done.out)}
    assert set(scores) == {2, 4, 6}
    logged = {line["step"]: line["J&F"] for line in log("run") if "J&F" in line}
    assert {step: round(score, 4) for step, score in logged.items()} == scores
    assert [line["step"] for line in log("run") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    scored = [line for line in log("run") if "J&F" in line]
    np.testing.assert_allclose([line["J&F"] for line in scored], [(line["J"] + line["F"]) / 2 for line in scored])
    board = EventAccumulator("run/tensorboard").Reload()
    assert [event.step for event in board.Scalars("J&F")] == [2, 4, 6]
    np.testing.assert_allclose([event.value for event in board.Scalars("J&F")], list(logged.values()), rtol=1e-6)
    best = torch.load("run/best.pt", weights_only=True)["progress"]
    assert best["best_step"] == best["step"] == max(scores, key=scores.__getitem__)
    assert tiny(*options, "-c", "other").code == 0
    assert_same(latest("run")["model"], latest("other")["model"])  # evaluation does not change training


def test_resumed_runs_keep_the_scores_in_the_log(tiny, small_davis):
    options = (*WALK, "--schedule", "constant", "--evaluate-on", small_davis, "--evaluate-every", 2)
    assert tiny(*options, "-c", "whole").code == 0
    assert tiny(*options, "--steps", 4, "-c", "parts").code == 0
    resumed = tiny(*options, "-c", "parts", "--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert "over the first 1 of 6 steps" in resumed.out
    assert [list(line) for line in log("parts") if "J&F" in line] == 3 * [["step", "J&F", "J", "F"]]
    assert log("parts") == log("whole")


def test_data_that_cannot_be_scored_are_refused_before_training(tiny, small_davis):
    options = (*WALK, "--evaluate-on", small_davis, "--evaluate-every", 2, "-c", "run")
    annotations = sorted((small_davis / "Annotations" / "480p" / "second").iterdir())
    for path in annotations[1:]:
        path.unlink()
    refused = tiny(*options)
    assert refused.code == 2
    assert "second has 4 frames and 1 annotations; expected 3 or more, as many of both" in refused.err
    for path in sorted((small_davis / "JPEGImages" / "480p" / "second").iterdir())[1:]:
        path.unlink()
    assert "second has 1 frames and 1 annotations; expected 3 or more" in tiny(*options).err
    assert not Path("run").exists()


def test_make_davis_is_silent_where_stderr_is_no_terminal(tmp_path, capfd):
    make_davis(tmp_path / "made", sequences=1, frames=2, height=32, width=32)
    assert capfd.readouterr() == ("", "")


def test_weights_to_start_from(tiny):
    assert tiny(*WALK, "-c", "run").code == 0
    for file in ("run/latest.pt", "run/encoder.safetensors"):
        shutil.rmtree("more", ignore_errors=True)
        assert tiny(*WALK, "--lr", 1e-12, "--weight-decay", 0, "--pretrained", file, "-c", "more").code == 0
        found, expected = (latest(folder)["model"]["encoder.layer1.0.conv1.weight"] for folder in ("more", "run"))
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert "holds a model of other sizes" in tiny(*WALK, "--width", 8, "--pretrained", "run/latest.pt").err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-c", "run", "--resume", "auto", "--lr", 0.5), "--lr is 0.5, and 0.001 in the run that is gone on"),
        (("-c", "run", "--resume", "auto", "--steps", 9), "--steps is 9, and 1 in the run that is gone on from"),
        (("-c", "run", "--resume", "auto", "--width", 7), "--width is 7, and 4 in the run"),
        (("-c", "run"), "run holds a run; expected --resume auto to go on with it, or another --checkpoint"),
        (("--resume", "run/none.pt"), "run/none.pt does not exist; expected a checkpoint of this program for --resume"),
        (("--resume", "weights.pt"), "weights.pt does not hold a run to go on from"),
        (("--resume", "code.pt"), "code.pt is damaged or holds code"),
        (("--videos", "nowhere"), "nowhere is not a folder; expected one with video files"),
        (("--filelist", "empty.txt"), "empty.txt lists no clips"),
        (("--videos", "run"), "--filelist and --videos are both given"),
        (("--batchSize", 5, "--accumulate", 2), "--batchSize is 5; expected a multiple of 2"),
        (("--sync-batchnorm",), "--sync-batchnorm is given, and there is no GPU"),
        (("--evaluate-every", 1, "--evaluate-on", "nowhere"), "nowhere"),
        (("--device", "tpu"), "--device is tpu; expected auto, cpu or cuda"),
    ],
)
def test_invalid_options_are_refused_in_a_sentence(tiny, arguments, sentence):
    assert tiny(*WALK, "--steps", 1, "-c", "run").code == 0
    torch.save({"state_dict": {"x": torch.zeros(1)}}, "weights.pt")
    torch.save({"format": print}, "code.pt")
    Path("empty.txt").touch()
    before = sorted(Path("run").rglob("*"))
    alone = "-c" in arguments or "nowhere" in arguments
    refused = tiny(*(() if alone else (*WALK, "-c", "new")), *arguments)
    assert refused.code == 2
    assert sentence in refused.err
    assert refused.err.count("\n") == 1
    assert sorted(Path("run").rglob("*")) == before


def test_runs_without_a_name_have_folders_of_their_own(tiny):
    for _ in range(2):
        assert tiny(*CYCLE, "--steps", 1).code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["train-timecycle-list", "train-timecycle-list-2"]
    assert "going on from out/train-timecycle-list-2/" in tiny(*CYCLE, "--steps", 2, "--resume", "auto").out
