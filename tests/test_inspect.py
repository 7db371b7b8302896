"""`timecycle inspect`: what is printed and drawn of a pixel of an evaluation, and what is refused."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import timecycle
from tests.conftest import write_sequence
from timecycle import cli
from timecycle.data.masks import read_mask, write_mask
from timecycle.errors import InputError
from timecycle.evaluation.davis import explanations, failures
from timecycle.evaluation.davis.explanations import failure_pictures
from timecycle.evaluation.davis.failures import chosen_failures, frames_needed, wrong_pixel
from timecycle.evaluation.davis.inspection import inspect_run
from timecycle.evaluation.davis.report_frames import WorstFrame
from timecycle.evaluation.davis.run import read_run
from timecycle.evaluation.davis.run_features import features_of, protocol_of

FRAMES = 6


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of an evaluation of two small sequences, by colors."""
    folder = tmp_path_factory.mktemp("inspect")
    for name in ("first", "second"):
        write_sequence(folder / "davis", name, FRAMES)
    words = ["--davis", folder / "davis", "--features", "color", "--protocol", "dino", "--override", "multiple=8"]
    cli.run(["evaluate", *map(str, words), "--cropSize", "48", "--save_path", str(folder / "run"), "--quiet"])
    return folder / "run"


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change."""
    return shutil.copytree(evaluated, tmp_path / "run")


@pytest.fixture
def inspect(command_line: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run `timecycle inspect` in a folder of its own; gives .code, .out and .err."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: command_line(cli.main, "inspect", *words)


def test_the_table_and_the_picture_of_a_pixel(evaluated: Path, inspect: Callable):
    done = inspect(evaluated, "--sequence", "first", "--frame", "00003", "--at", "20,20", "-o", "why.png")
    assert (done.code, done.err.count("error")) == (0, 0)
    lines = done.out.splitlines()
    assert lines[0] == "first, frame 00003"
    assert "in the result: object 1; in the annotation: object 1" in lines
    assert "pixel 20,20: feature position 2,2 of 8 x 6" in lines
    assert lines[-1] == "picture: why.png"
    names = [line.split()[0] for line in lines[lines.index("") + 2 : -1]]
    assert names == ["00000", "00001", "00002"]
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[lines.index("") + 2 : -1]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert not any("differ from the run" in line for line in lines)
    with Image.open("why.png") as image:
        assert image.width == 1280


def test_by_default_the_worst_frame_amid_its_largest_error(evaluated: Path, inspect: Callable):
    done = inspect(evaluated)
    assert done.code == 0
    worst = read_run(evaluated).scores.worst(1)[0]
    assert done.out.startswith(f"{worst.sequence}, frame {worst.file.removesuffix('.png')}\n")
    result, truth = done.out.splitlines()[1].removeprefix("in the result: ").split("; in the annotation: ")
    assert result != truth
    picture = Path(done.out.splitlines()[-1].removeprefix("picture: "))
    assert picture.parent == Path("out/inspect")
    assert inspect(evaluated).code == 0  # its own file is replaced


def test_a_frame_by_its_number_and_by_its_name(evaluated: Path):
    by_name = inspect_run(evaluated, "first", "00004", (30, 20), progress=False)
    by_number = inspect_run(evaluated, "first", 4, (30, 20), progress=False)
    assert by_name.table() == by_number.table() == repr(by_name)
    np.testing.assert_array_equal(by_name.picture, by_number.picture)


def test_the_weights_give_the_label_of_the_mask(evaluated: Path):
    run = read_run(evaluated)
    for x, y in ((20, 20), (30, 30), (60, 4)):
        found = inspect_run(run, "second", 5, (x, y), progress=False)
        assert found.different == 0
        assert max(found.weights.shares, key=found.weights.shares.get) == found.result
        assert found.result == read_mask(run.mask("second", "00005"))[y, x]


@pytest.mark.parametrize(
    ("name", "dtype"), [("timecycle", "float32"), ("uvc", "bfloat16"), ("vfs", "float32"), ("best", "bfloat16")]
)
def test_propagating_again_gives_the_run_s_masks(evaluated: Path, tmp_path: Path, name: str, dtype: str):
    words = ["--davis", evaluated.parent / "davis", "--sequences", "first", "--features", "color", "--protocol", name]
    words += ["--cropSize", 64, "--dtype", dtype, "--save_path", tmp_path / "run", "--inspect", 0, "--quiet"]
    cli.run(["evaluate", *map(str, words)])
    found = inspect_run(tmp_path / "run", "first", 5, (20, 20), progress=False)
    assert found.different == 0
    assert found.result == 1


def test_a_mask_that_propagation_does_not_give_now_is_told(copied: Path):
    path = copied / "first" / "00003.png"
    mask = read_mask(path)
    mask[:5, :7] = 1
    write_mask(path, mask)
    found = inspect_run(copied, "first", 3, (20, 20), progress=False)
    assert found.different == 35
    assert "35 pixels of this frame's mask differ from the run's" in found.table()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sequence", "firts"], "has no sequence firts; expected first"),
        (["--sequence", "first", "--frame", "0"], "frame 0 of first has no context"),
        (["--sequence", "first", "--frame", "00000"], "frame 00000 of first has no context"),
        (["--sequence", "first", "--frame", "6"], "first has no frame 6; expected 00000 to 00005, or 1 to 5"),
        (["--sequence", "first", "--frame", "x"], "first has no frame x"),
        (["--sequence", "first", "--frame", "3", "--at", "64,0"], "expected x from 0 to 63 and y from"),
        (["--sequence", "first", "--frame", "3", "--at", "20"], "--at is 20; expected x,y"),
        (["--frame", "3"], "frame 3 is given without a sequence"),
        (["-o", "why.gif"], "--output is why.gif; expected a name that ends in .jpg"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)  # fmt: skip
def test_what_is_refused(evaluated: Path, inspect: Callable, words: list[str], expected: str):
    done = inspect(evaluated, *words)
    assert done.code == 2
    assert expected in done.err
    assert "Traceback" not in done.err


def test_another_file_is_not_replaced(evaluated: Path, inspect: Callable):
    Path("why.jpg").write_text("mine")
    done = inspect(evaluated, "-o", "why.jpg")
    assert done.code == 2
    assert "was not made by this program" in done.err
    assert Path("why.jpg").read_text() == "mine"


def changed(run: Path, change: Callable[[dict], None]) -> Path:
    """Change a run's results.json."""
    content = json.loads((run / "results.json").read_text())
    change(content)
    (run / "results.json").write_text(json.dumps(content))
    return run


def test_features_that_are_gone_or_others_are_refused(copied: Path):
    changed(copied, lambda content: content["method"].update(features="network", resume="/gone.pth"))
    with pytest.raises(InputError, match=r"/gone\.pth does not exist; expected the checkpoint that"):
        inspect_run(copied, progress=False)
    changed(copied, lambda content: content["method"].update(resume=None))
    changed(copied, lambda content: content["sequences"]["first"].update(features="network 00ff"))
    with pytest.raises(InputError, match=r"the features are not those that .* was made with \(network 00ff\)"):
        inspect_run(copied, "first", 3, (20, 20), progress=False)
    changed(copied, lambda content: content.pop("method"))
    with pytest.raises(InputError, match="does not say how its features are loaded"):
        inspect_run(copied, progress=False)


@pytest.mark.parametrize(
    "method", [{"features": 5}, {"features": "color", "dtype": "int3"}, [], "color", {"resume": 3}]
)
def test_damaged_records_of_features_are_refused(copied: Path, method: object):
    known = json.loads((copied / "results.json").read_text())["method"]
    changed(copied, lambda content: content.update(method=known | method if isinstance(method, dict) else method))
    with pytest.raises(InputError, match="of its features; expected what this version writes"):
        inspect_run(copied, "first", 3, (20, 20), progress=False)


def test_code_that_a_run_names_runs_only_if_the_user_names_it(tmp_path: Path, inspect: Callable, small_davis: Path):
    Path("named_features.py").write_text(
        "import torch\n\ndef extract(images):\n    return torch.nn.functional.avg_pool2d(images, 8)\n"
    )
    words = [
        "--davis",
        small_davis,
        "--protocol",
        "dino",
        "--override",
        "multiple=8",
        "--cropSize",
        48,
        "--save_path",
        "run",
    ]
    try:
        cli.run(["evaluate", *map(str, words), "--features", "named_features:extract", "--quiet"])
        asked = ["run", "--sequence", "first", "--frame", 2, "--at", "20,20"]
        done = inspect(*asked)
        assert done.code == 2
        assert "expected timecycle inspect with --features named_features:extract" in done.err
        assert inspect(*asked, "--features", "other:extract").code == 2
        assert inspect(*asked, "--features", "named_features:extract").code == 0
        assert "differ from the run" not in done.out
    finally:
        sys.modules.pop("named_features", None)


def means(images: torch.Tensor) -> torch.Tensor:
    """A feature extractor: means of patches."""
    return torch.nn.functional.avg_pool2d(images, 8)


def edges(images: torch.Tensor) -> torch.Tensor:
    """Another one."""
    return torch.nn.functional.avg_pool2d(images.diff(dim=3, append=images[..., :1]), 8)


def test_a_run_that_was_made_in_python_takes_its_features(small_davis: Path, tmp_path: Path):
    run = tmp_path / "run"
    timecycle.evaluate_davis(means, small_davis, side=48, multiple=8, save_path=run, progress=False)
    found = inspect_run(run, "first", 2, (20, 20), features=means, progress=False)
    assert found.different == 0
    with pytest.raises(InputError, match="the features are not those"):
        inspect_run(run, "first", 2, (20, 20), features=edges, progress=False)
    with pytest.raises(InputError, match="does not say how its features are loaded"):
        inspect_run(run, "first", 2, (20, 20), progress=False)


def test_pictures_of_failures(evaluated: Path):
    run = read_run(evaluated)
    chosen = [WorstFrame(name, 1, index, 0.0, 0.0) for name, index in (("first", 4), ("second", 3), ("first", 2))]
    assert frames_needed(chosen) == 5 + 4
    with features_of(run, "first") as features:
        made = failure_pictures(chosen, run.sequences(), features, protocol_of(run), run.places, progress=False)
        alone = failure_pictures(chosen[2:], run.sequences(), features, protocol_of(run), run.places, progress=False)
    assert set(made) == {("first", 4), ("second", 3), ("first", 2)}
    assert made["first", 2] == alone["first", 2]
    with Image.open(io.BytesIO(made["first", 4])) as image:
        assert (image.format, image.width) == ("JPEG", 1280)


def test_failures_are_the_first_worst_frames_that_cost_little(evaluated: Path):
    scores = read_run(evaluated).scores
    every = chosen_failures(scores, 0, 9)
    assert sorted((one.sequence, one.object_id) for one in every) == [("first", 1), ("second", 1)]
    assert every[0].index == int(scores.worst(1)[0].file.removesuffix(".png"))
    assert chosen_failures(scores, 0, 1) == every[:1]
    assert chosen_failures(scores, 10 * frames_needed(every[:1])) == every[:1]
    assert chosen_failures(scores, 10 * frames_needed(every)) == every
    assert chosen_failures(scores, 10) == []


def test_the_page_of_an_evaluation_links_them(
    evaluated: Path, command_line: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not list(evaluated.glob("report/*/*-inspect.jpg"))  # 12 frames are too few
    options = ["--davis", evaluated.parent / "davis", "--features", "color", "--protocol", "dino", "--cropSize", 48]
    options += ["--override", "multiple=8", "--save_path", tmp_path / "run", "--quiet"]
    assert command_line(cli.main, "evaluate", *options, "--inspect", -1).code == 2
    assert command_line(cli.main, "evaluate", *options, "--inspect", 1).code == 0
    [picture] = (tmp_path / "run").glob("report/*/*-inspect.jpg")
    assert picture.relative_to(tmp_path / "run").as_posix() in (tmp_path / "run/report.html").read_text()
    assert command_line(cli.main, "evaluate", *options, "--inspect", 2).code == 0
    assert len(list((tmp_path / "run").glob("report/*/*-inspect.jpg"))) == 2
    with monkeypatch.context() as patched:
        patched.setattr(explanations, "inspections", None)  # pictures that are there are not made again
        assert command_line(cli.main, "evaluate", *options, "--inspect", 2).code == 0
        assert command_line(cli.main, "report", tmp_path / "run").code == 0
    assert len(list((tmp_path / "run").glob("report/*/*-inspect.jpg"))) == 2
    assert command_line(cli.main, "evaluate", *options, "--inspect", 0).code == 0
    assert not list((tmp_path / "run").glob("report/*/*-inspect.jpg"))


def test_the_page_of_a_finished_evaluation_gets_them_later(copied: Path, command_line: Callable, tmp_path: Path):
    assert command_line(cli.main, "report", copied, "--inspect", -1).code == 2
    assert command_line(cli.main, "report", copied, "--inspect", 1).code == 0
    [picture] = copied.glob("report/*/*-inspect.jpg")
    assert picture.relative_to(copied).as_posix() in (copied / "report.html").read_text()
    assert command_line(cli.main, "report", copied, "-o", tmp_path / "page.html").code == 0
    assert "Where its labels come from" in (tmp_path / "page.html").read_text()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "settings.json").write_text("{}")
    done = command_line(cli.main, "report", tmp_path / "training", "--inspect", 1)
    assert done.code == 2
    assert "is a training run; expected an evaluation" in done.err


def test_the_page_of_an_evaluation_in_python_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sequence(tmp_path / "davis", "only", FRAMES)
    words = {"side": 48, "multiple": 8, "save_path": tmp_path / "run", "report": True, "progress": False}
    timecycle.evaluate_davis(means, tmp_path / "davis", **words)
    assert not list(tmp_path.glob("run/report/*/*-inspect.jpg"))  # they would cost too much
    monkeypatch.setattr(failures, "BUDGET", 1.0)
    scores = timecycle.evaluate_davis(means, tmp_path / "davis", **words)
    assert len(list(tmp_path.glob("run/report/*/*-inspect.jpg"))) == len(chosen_failures(scores, FRAMES)) == 1


def test_a_wrong_pixel_is_amid_the_largest_wrong_region():
    truth = np.zeros((40, 60), np.uint8)
    truth[5:15, 5:15] = 1
    truth[20:39, 20:50] = 2
    result = np.zeros_like(truth)
    result[20:39, 20:24] = 2
    assert wrong_pixel(truth, truth) is None
    x, y = wrong_pixel(truth, result)
    assert 30 <= x <= 44
    assert 27 <= y <= 31
    x, y = wrong_pixel(truth, result, 1)
    assert 8 <= x <= 11
    assert 8 <= y <= 11
    truth[:20] = 255
    assert wrong_pixel(truth, result, 1) is None
