"""The scripts of examples/, each run as a program in an empty folder, with small settings."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import timecycle
from timecycle.data.masks import read_mask
from timecycle.data.synthetic import make_davis
from timecycle.evaluation.davis.scores import score_sequence

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(folder: Path, *command: object) -> str:
    """What a command of Python prints in a folder."""
    words = [sys.executable, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic videos of four small frames."""
    return make_davis(tmp_path_factory.mktemp("made") / "davis", sequences=2, frames=4, height=64, width=112)


def test_every_example_is_listed_and_says_how_to_run_it():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == names
    for name in names:
        assert f"python examples/{name}" in (EXAMPLES / name).read_text().partition('"""\n\n')[0]


def test_propagate_video_writes_the_masks_of_a_video_and_its_overlay(davis, tmp_path):
    frames, annotations = (davis / kind / "480p" / "made-deform" for kind in ("JPEGImages", "Annotations"))
    first = annotations / "00000.png"
    said = run(tmp_path, EXAMPLES / "propagate_video.py", frames, first, "--side", 96, "-o", "clip")
    masks = [read_mask(path) for path in sorted((tmp_path / "clip" / "masks").iterdir())]
    truth = [read_mask(path) for path in sorted(annotations.iterdir())]
    assert len(masks) == 4
    assert np.array_equal(masks[0], truth[0])
    assert min(scores.jaccard.mean() for scores in score_sequence(truth, masks)) > 0.7
    assert f"frame 3: object 1: {(masks[3] == 1).sum()} pixels" in said
    assert (tmp_path / "clip" / "overlay.mp4").stat().st_size > 0


def test_evaluate_in_training_loop_keeps_the_best_epoch(davis, tmp_path):
    said = run(tmp_path, EXAMPLES / "evaluate_in_training_loop.py", "--davis", davis, "--side", 64, "--epochs", 2)
    epochs = [float(number) for number in re.findall(r"^epoch \d: loss [\d.]+, J&F ([\d.]+)", said, re.MULTILINE)]
    assert len(epochs) == 2
    assert f"{max(epochs):.3f}" in said.split("all objects")[1]  # the table of the best
    best = epochs.index(max(epochs))
    written = json.loads((tmp_path / f"out/training_loop/epoch{best}/results.json").read_text())
    assert written["sequences"]
    weights = torch.load(tmp_path / "out/training_loop/best.pt", weights_only=True)
    module = imported("evaluate_in_training_loop")
    model = module.network()
    model.load_state_dict(weights)
    assert timecycle.evaluate_davis(model, davis, "dino", side=64, progress=False).jf == pytest.approx(
        max(epochs), abs=5e-4
    )


def imported(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_my_vit_scores_the_same_as_a_program_as_an_option_and_by_its_tokens(davis, tmp_path):
    said = run(tmp_path, EXAMPLES / "my_vit.py", "--davis", davis)
    module = imported("my_vit")
    by_tokens = timecycle.evaluate_davis(module.model, davis, "dino", progress=False, **module.PREPARATION)
    assert said.strip() == by_tokens.table()
    (tmp_path / "my_vit.py").write_text((EXAMPLES / "my_vit.py").read_text())
    options = ("--protocol", "dino", "--features", "my_vit:extract", "--davis", davis, "--save_path", "results")
    run(tmp_path, "-m", "timecycle", "evaluate", *options, "--quiet")
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["scores"]["global"]["J&F-Mean"] == by_tokens.jf


def test_points_and_textures_are_drawn_where_the_objects_go(tmp_path):
    said = run(tmp_path, EXAMPLES / "points_and_textures.py", "--frames", 4)
    errors = [float(number) for number in re.findall(r"off by ([\d.]+) pixels", said)]
    assert len(errors) == 4
    assert errors[0] == 0
    assert max(errors) < 4  # half of a feature position
    picture = np.asarray(Image.open(tmp_path / "out" / "points_and_textures.png"))
    assert picture.shape == (512, 4 * 384, 3)
    module = imported("points_and_textures")
    scene = module.scene_of(4)
    for time in (0, 3):
        frame, mask = scene.frame(time)
        below = picture[256:, time * 384 : (time + 1) * 384]
        painted = (below != frame).any(axis=2)
        assert (painted & (mask > 0)).sum() / (painted | (mask > 0)).sum() > 0.85


def test_use_the_kernel_agrees_with_the_plain_form(tmp_path):
    said = run(tmp_path, EXAMPLES / "use_the_kernel.py", "--grid", 12, 20, "--frames", 2)
    found = re.findall(r"^(\w+) +output differs by (\S+), gradients by (\S+)$", said, re.MULTILINE)
    assert [name for name, *_ in found] == ["affinity_propagate", "topk_affinity", "attention"]
    assert max(float(number) for _, *numbers in found for number in numbers) < 1e-5
