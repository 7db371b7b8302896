"""The folder of a run: damaged files, other processes, links; and the choice of the best checkpoint."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.assertions import raises_input_error
from tests.tiny_training import CYCLE, WALK
from tests.training_runs import assert_same, assert_same_run, latest
from timecycle.errors import InputError
from timecycle.files import hash_of, not_written
from timecycle.locks import owned
from timecycle.training import checkpointer as checkpoints
from timecycle.training import loop
from timecycle.training.distributed import Distributed
from timecycle.training.logger import kept_lines
from timecycle.training.run_folder import Run, RunFiles, find_run, start_run
from timecycle.training.settings import resolved

ALONE = Distributed(0, 1, torch.device("cpu"))
OPTIONS = (*WALK, "--schedule", "constant", "--keep", 9)


@pytest.fixture
def whole(tiny) -> Iterator[Any]:
    """A run of 6 steps in the folder whole, and one of 4 in parts, with the checkpoints of 2 and 4; gives `tiny`."""
    assert tiny(*OPTIONS, "-c", "whole").code == 0
    assert tiny(*OPTIONS, "--save-every", 2, "--steps", 4, "-c", "parts").code == 0
    return tiny


def test_a_damaged_settings_file_is_replaced(whole):
    file, path = Path("parts/settings.json"), Path("parts/checkpoint_0000004.pt")
    settings = resolved({}, torch.load(path, weights_only=True)["settings"])
    for content in (b"", b"\0" * 100, b"{}", b'{"runs": [1]}', b'{"runs": [{"x": NaN}]}', b"[" * 100_000, b"\xff"):
        file.write_bytes(content)
        lost = start_run(Run(path.parent, path, {}), settings, ALONE, 4, 0)
        assert lost.startswith("the list of processes that worked on the run begins anew: parts/settings.json "), (
            content
        )
        assert [run["from_step"] for run in json.loads(file.read_text())["runs"]] == [4]
    file.unlink()
    done = whole(*OPTIONS, "-c", "parts", "--resume", "auto")
    assert done.code == 0, done.err
    assert "begins anew: parts/settings.json does not exist" in done.out
    assert_same_run("parts", "whole")


def test_damaged_lines_of_the_log_are_removed(whole):
    damaged = [
        b"\0" * 9, b"", b"3", b'{"loss": 1.0}', b'{"step": "1"}', b'{"step": true}', b'{"step": 2, "loss": null}',
        b'{"step": 2, "loss": NaN}', b'{"step": -1}', b"[" * 10_000, b"\xff\xfe", b'{"step": 1' + b"0" * 5000 + b"}",
    ]  # fmt: skip
    file = Path("parts/log.jsonl")
    file.write_bytes(b"\n".join([*damaged, file.read_bytes()]) + b'{"step": 5, "loss": 1.0}\n{"step": 1, "lo')
    done = whole(*OPTIONS, "-c", "parts", "--resume", "auto")
    assert done.code == 0, done.err
    assert (
        f"parts/log.jsonl: {len(damaged)} damaged lines are left out; the log with them is log.jsonl.set-aside"
        in done.out
    )
    assert Path("parts/log.jsonl.set-aside").read_bytes().startswith(b"\n".join(damaged))
    assert_same_run("parts", "whole")


def test_metrics_other_than_the_loss_may_be_nan_in_the_log(tmp_path):
    (tmp_path / "log").write_text('{"step": 1, "loss": 1.0, "inliers": NaN}\n')
    assert len(kept_lines(tmp_path / "log", 1)[0]) == 1


DAMAGE = {
    "model": lambda content: content["model"].popitem(),
    "shape": lambda content: content["model"].update({"encoder.bn1.weight": torch.ones(5)}),
    "type": lambda content: content["model"].update({"encoder.bn1.weight": torch.ones(4).half()}),
    "numbers": lambda content: content["model"]["encoder.bn1.weight"].fill_(torch.inf),
    "optimizer": lambda content: content["optimizer"]["state"].pop(3),
    "moment": lambda content: content["optimizer"]["state"][3].update(exp_avg=torch.zeros(1)),
    "group": lambda content: content["optimizer"]["param_groups"][0].update(eps=1.0),
    "rate": lambda content: content["optimizer"]["param_groups"][0].update(lr=1.0),
    "schedule": lambda content: content["schedule"].update(last_epoch=1),
    "method": lambda content: content["schedule"].update(_last_lr=[None]),
    "progress": lambda content: content["progress"].update(step="4"),
    "score": lambda content: content["progress"].update(best_score=7.0),
    "random": lambda content: content["random"][0].update(python=(3, (1,) * 625, "x")),
    "numpy": lambda content: content["random"][0]["numpy"]["state"].update(pos=10**6),
    "torch": lambda content: content["random"][0].update(torch=torch.zeros(9, dtype=torch.uint8)),
    "skipped": lambda content: content.update(skipped=[1]),
    "settings": lambda content: content["settings"].update(batch="4"),
    "range": lambda content: content["settings"].update(batch=-4),
    "no settings": lambda content: content.update(settings=None),
    "clips": lambda content: content.pop("clips"),
}


def begun(given: dict[str, Any]) -> loop.Training:
    """The training of these options, before its first step."""
    return find_run(given, lambda run: loop.set_up(given, run, ALONE))


def test_a_checkpoint_with_invalid_contents_is_passed_over(whole):
    """Although the archive's checksums are right."""
    path = Path("parts/checkpoint_0000004.pt")
    good = path.read_bytes()
    for part, damage in DAMAGE.items():
        path.write_bytes(good)
        content = torch.load(path, weights_only=True)
        damage(content)
        torch.save(content, path)
        with raises_input_error() as refused:
            begun({"resume": str(path), "checkpoint": path.parent})
        found = begun({"resume": "auto", "checkpoint": path.parent})
        assert (found.checkpointer.progress.step, found.run.passed_over) == (2, str(refused.value)), part
    done = whole(*OPTIONS, "-c", "parts", "--resume", "auto")
    assert done.code == 0, done.err
    assert re.search(r"passed over: parts/checkpoint_0000004.pt does not fit this run \(clips has no .*\); ", done.out)
    assert "going on from parts/checkpoint_0000002.pt, step 2" in done.out
    assert_same_run("parts", "whole")


OLD_SETTINGS = {
    "optimizer": "optimiser", "beta1": "momentum", "max_grad_norm": "clip", "synthetic_clips": "made_clips",
    "visualize_every": "pictures_every", "crop_side": "side", "frame_side": "side", "patch_side": "patch",
    "max_frame_gap": "frame_gap",
}  # fmt: skip


@pytest.mark.parametrize("options", [OPTIONS, (*CYCLE, "--keep", 9)], ids=["walk", "timecycle"])
def test_a_run_of_version_0_1_is_resumed(tiny, options):
    """Its checkpoints have other names of settings, the optimizer and parameters."""
    assert tiny(*options, "-c", "whole").code == 0
    assert tiny(*options, "--steps", 2, "-c", "parts").code == 0
    path = Path("parts/checkpoint_0000002.pt")
    content = torch.load(path, weights_only=True)
    content["optimiser"] = content.pop("optimizer")
    content["model"] = {name.replace("localizer.", "localiser."): value for name, value in content["model"].items()}
    settings = {OLD_SETTINGS.get(name, name): value for name, value in content["settings"].items()}
    # All objectives' settings were stored.
    content["settings"] = {"patch": 80, "lamda": 0.1, "walk_over": "crops", "temperature": 0.07} | settings
    torch.save(content, path)
    done = tiny(*options, "-c", "parts", "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from parts/checkpoint_0000002.pt, step 2" in done.out
    assert_same_run("parts", "whole")


def test_a_renamed_checkpoint_is_resumed(whole):
    Path("alone").mkdir()
    Path("parts/checkpoint_0000004.pt").rename("alone/mine.pt")
    assert whole(*OPTIONS, "--resume", "alone/mine.pt").code == 0
    assert_same(latest("alone")["model"], latest("whole")["model"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 1.5),
        ("batch", True),
        ("lr", "1"),
        ("lr", 10**400),
        ("videos", 3),
        ("objective", "x"),
        ("width", 2**70),
    ],
)
def test_settings_of_other_types_are_refused(name, value):
    stored = resolved({"objective": "walk"}).to_json()
    assert resolved({}, stored) == resolved({"objective": "walk"}, stored)
    with pytest.raises(InputError, match=name):
        resolved({}, stored | {name: value})


def test_a_folder_in_use_is_refused(tiny):
    with owned(Path("run")):
        refused = tiny(*WALK, "-c", "run")
        assert refused.code == 2
        assert re.match(r"error: run is in use by process \d+ on \S+ since \S+ \(.*\); expected one ", refused.err)
        assert refused.err.count("\n") == 1
    assert tiny(*WALK, "-c", "run", "--resume", "auto").code == 0
    with owned(Path("run")):
        assert "run is in use by" in tiny("-c", "run", "--resume", "auto").err
        assert "run is in use by" in tiny("--resume", "run/latest.pt").err
        assert tiny("--resume", "run/latest.pt", "-c", "branch").code == 0


def test_a_new_run_takes_a_folder_that_no_other_process_holds(tiny):
    first = Path("out/train-timecycle-list")
    with owned(first):
        assert tiny(*CYCLE, "--steps", 1).code == 0
    assert Path("out/train-timecycle-list-2/latest.pt").exists()
    assert not (first / "settings.json").exists()
    assert tiny(*CYCLE, "--steps", 1).code == 0
    assert (first / "latest.pt").exists()


def test_a_folder_is_locked_until_the_run_has_finished(tiny, monkeypatch):
    finish, finished = loop.finish, []

    def checked(checkpointer: Any, logger: Any) -> None:
        finish(checkpointer, logger)
        with pytest.raises(InputError, match="is in use by"), owned(checkpointer.folder):
            pass
        finished.append(checkpointer.folder)

    monkeypatch.setattr(loop, "finish", checked)
    assert tiny(*WALK, "--steps", 1, "-c", "run").code == 0
    assert finished == [Path("run")]
    with owned(Path("run")):
        assert sorted(path.name for path in Path("run").glob(".*")) == [".holder", ".lock", ".written"]


@pytest.mark.parametrize(
    "options", [("--crop-side", 1), ("--batchSize", 5, "--accumulate", 2), ("--resume", "auto", "--lr", -1)]
)
def test_a_run_that_does_not_start_leaves_no_files(tiny, options):
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    for folder in ("new/deep/run", "empty"):
        assert tiny(*WALK, "-c", folder, *options).code == 2
    assert tiny(*WALK, *options).code == 2
    assert sorted(Path().rglob("*")) == before


def test_partial_files_of_a_killed_process_are_removed(tiny):
    Path("run/images").mkdir(parents=True)
    left = [Path("run/.checkpoint_0000003.pt.99999999.partial"), Path("run/images/.0000003.jpg.99999999.partial")]
    for path in left:
        path.write_bytes(b"x")
    assert tiny(*WALK, "--steps", 1, "-c", "run").code == 0
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("name", ["tensorboard", "images"])
def test_nothing_is_written_through_links(tiny, name):
    Path("elsewhere").mkdir()
    Path("run").mkdir()
    Path("run", name).symlink_to(Path("elsewhere").absolute())
    refused = tiny(*WALK, "--visualize-every", 1, "-c", "run")
    assert refused.code == 2
    assert f"error: run/{name} is a symbolic link, through which nothing is written; expected" in refused.err
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize("name", ["settings.json", "log.jsonl", "tensorboard", "images", "encoder.safetensors"])
def test_files_and_folders_in_the_way_are_named(tiny, name):
    path = Path("run", name)
    if name in ("tensorboard", "images"):
        path.parent.mkdir()
        path.touch()
    else:
        (path / "x").mkdir(parents=True)
    refused = tiny(*WALK, "--visualize-every", 1, "-c", "run")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    said = rf"error: run(/{name} (cannot be written|is not a folder|is there)| holds a run)"
    assert re.match(said, refused.err), refused.err


def test_a_runtime_error_of_torch_save_on_a_full_disk_is_an_input_error(tmp_path, monkeypatch):

    def full(content: Any, file: Any) -> None:
        file.write(b"x")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534\nmore")

    monkeypatch.setattr(torch, "save", full)
    path = tmp_path / "checkpoint_0000001.pt"
    reason = OSError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    with raises_input_error(str(not_written(path, reason))):
        saved(path)
    assert not list(tmp_path.iterdir())


def saved(path: Path) -> RunFiles:
    """The files of a folder with one checkpoint, written as a run does."""
    files = RunFiles(path.parent)
    with files.writing(path.name) as partial:
        checkpoints._write(partial, {"x": 1})
    return files


def test_file_systems_without_links_are_supported(tmp_path, monkeypatch):
    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refused)
    monkeypatch.setattr(Path, "symlink_to", refused)
    path = tmp_path / "checkpoint_0000001.pt"
    for _ in range(2):  # the second time replaces the files of the first
        files = saved(path)
        files.keep_newest(1)
        files.keep_best(path)
    for name in ("latest.pt", "best.pt"):
        assert torch.load(tmp_path / name, weights_only=True) == {"x": 1}
        assert not (tmp_path / name).is_symlink()
    assert not list(tmp_path.glob("*.set-aside"))


def test_keeping_the_best_checkpoint_twice_leaves_no_other_files(tmp_path):
    path = tmp_path / "checkpoint_0000001.pt"
    for _ in range(2):  # as after a kill in between
        saved(path).keep_best(path)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "best.pt", ".written"}


def test_the_best_checkpoint_is_that_of_an_uninterrupted_run(tiny, small_davis, monkeypatch):
    """The run is stopped after every step."""
    scores, steps, due = (0.1, 0.9, 0.3, 0.8, 0.7, 0.2), [], loop.due
    monkeypatch.setattr("timecycle.training.loop.validate", lambda encoder, folder: {"J&F": scores[steps[-1] - 1]})
    monkeypatch.setattr("timecycle.training.loop.due", lambda step, every: steps.append(step) or due(step, every))
    options = (*OPTIONS, "--evaluate-on", small_davis, "--evaluate-every", 4)
    assert tiny(*options, "-c", "whole").code == 0
    for number in range(5):
        stopped = tiny(*options, "-c", "parts", "--resume", "auto", fault="signal:SIGTERM:1")
        assert stopped.code == 0, stopped.err
        assert f"stopped by SIGTERM after step {number + 1}" in stopped.out
    assert tiny(*options, "-c", "parts", "--resume", "auto").code == 0
    assert_same_run("parts", "whole")
    assert latest("whole")["progress"] == {"step": 6, "best_step": 4, "best_score": 0.8}
    for folder in ("parts", "whole"):
        assert torch.load(f"{folder}/best.pt", weights_only=True)["progress"]["step"] == 4


def test_the_best_checkpoint_is_kept_after_a_kill_before_it_was(tiny, small_davis):
    options = (*OPTIONS, "--evaluate-on", small_davis, "--evaluate-every", 2)
    assert tiny(*options, "--steps", 2, "-c", "run").code == 0
    Path("run/best.pt").unlink()
    assert tiny(*options, "--steps", 3, "-c", "run", "--resume", "auto", "--evaluate-every", 0).code == 0
    assert torch.load("run/best.pt", weights_only=True)["progress"]["step"] == 2


@pytest.mark.parametrize(
    "name", ["encoder.safetensors", "log.jsonl", "report.html", "best.pt", "latest.pt", "images/0000002.jpg"]
)
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_new_run_replaces_no_files_of_another_origin(tmp_path, name, resume):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} is there, and is of no run; expected another --checkpoint"):
        find_run({"checkpoint": tmp_path, "resume": resume}, lambda run: run)
    (tmp_path / "settings.json").write_text("{}")  # of a run that was killed before its first checkpoint
    if resume:
        assert find_run({"checkpoint": tmp_path, "resume": "auto"}, lambda run: run).folder == tmp_path


def test_a_kill_between_a_checkpoint_and_its_link_is_recovered(tiny):
    assert tiny(*OPTIONS, "--save-every", 1, "--keep", 2, "-c", "run").code == 0
    newest, older = Path("run/latest.pt").resolve(), Path("run/checkpoint_0000001.pt")
    older.write_bytes(newest.read_bytes())  # not yet removed
    files = RunFiles(older.parent)
    files.expect({older.name: [hash_of(older)]})
    Path("run/latest.pt").unlink()
    Path("run/latest.pt").symlink_to("checkpoint_0000005.pt")
    assert tiny("-c", "run", "--resume", "auto").code == 0
    assert Path("run/latest.pt").resolve() == newest
    assert not older.exists()


def test_a_resumed_run_removes_and_replaces_no_files_of_another_origin(whole):
    """Checkpoints of later and earlier steps, edited weights, and files under the names of links."""
    assert whole(*OPTIONS, "--save-every", 1, "--keep", 2, "-c", "short").code == 0
    mine = ("checkpoint_9000.pt", "checkpoint_0000001.pt", "latest.pt", "best.pt", "encoder.safetensors", "report.html")
    for name in mine:
        Path("short", name).unlink(missing_ok=True)
        Path("short", name).write_text(f"my {name}")
    Path("short/checkpoint_0000006.pt").write_text("damaged")
    done = whole("-c", "short", "--resume", "auto")
    assert done.code == 0, done.err
    for name in (*mine, "checkpoint_0000006.pt"):
        content = "damaged" if name == "checkpoint_0000006.pt" else f"my {name}"
        aside = Path("short", f"{name}.set-aside")
        stays = name in ("checkpoint_0000001.pt", "best.pt")  # beyond what is kept; of a run without evaluations
        assert (Path("short", name) if stays else aside).read_text() == content
        assert stays or f"short/{name} is not as a run wrote it; it is now {aside.name}" in done.out
    assert sorted(Path("short").glob("checkpoint_*.pt")) == [
        Path(f"short/checkpoint_000000{step}.pt") for step in (1, 5, 6)
    ]
    assert_same(latest("short")["model"], latest("whole")["model"])


def test_damaged_notes_of_a_run_are_replaced_and_no_checkpoint_is_removed(whole):
    Path("parts/.written/.run.json").write_text("{")
    done = whole(*OPTIONS, "-c", "parts", "--resume", "auto", "--keep", 1)
    assert done.code == 0, done.err
    assert "parts/.written/.run.json is damaged or not JSON" in done.out
    assert {path.name for path in Path("parts").glob("checkpoint_*.pt")} == {
        "checkpoint_0000002.pt", "checkpoint_0000004.pt", "checkpoint_0000006.pt"
    }  # fmt: skip


def test_a_run_that_does_not_start_keeps_a_lock_file_of_another_origin(tiny):
    Path("run").mkdir()
    Path("run/.lock").write_text("mine")
    Path("run/log.jsonl").write_text("mine")
    assert tiny(*WALK, "--steps", 1, "-c", "run").code == 2
    assert Path("run/.lock").read_text() == "mine"
