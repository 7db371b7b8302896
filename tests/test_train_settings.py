"""train.py's command line: the published program's options, refusals, and the source of each value."""

import random
import re
import shlex

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from timecycle.errors import InputError
from timecycle.training.checkpointer import restore_rng_states, rng_states, seed_everything
from timecycle.training.command_line import read_command_line
from timecycle.training.objectives import make_optimizer, make_schedule
from timecycle.training.settings import (
    KINDS,
    OPTIONS,
    CropWalkSettings,
    GridWalkSettings,
    RunSettings,
    TimeCycleSettings,
    applies,
    flag,
    resolved,
)

PUBLISHED = shlex.split("""
    --batchSize 36 --workers 12 --epochs 30 --lr 2e-4 --momentum 0.5 --weight-decay 0 --checkpoint runs/a --manualSeed 3
    --gpu-id 0,1 --predDistance 4 --seperate2d 0 --T 0.04419417382415922 --gridSize 9 --classNum 49 --lamda 0.1
    --pretrained_imagenet False --videoLen 4 --frame_gap 2 --hist 1 --optim adam -d data --evaluate
""")


def test_the_published_command_line_gives_the_published_numbers():
    given, unused = read_command_line([*PUBLISHED, "--filelist", "list.txt"])
    settings = resolved(given)
    assert sorted(unused) == ["--classNum", "--data", "--evaluate", "--seperate2d"]
    assert settings == TimeCycleSettings(
        filelist=settings.filelist, checkpoint=settings.checkpoint, workers=12, seed=3, gpu_id="0,1"
    )
    assert (settings.batch, settings.frame_side, settings.patch_side, settings.max_grad_norm) == (36, 240, 80, 10.0)
    optimizer = make_optimizer(settings, torch.nn.Linear(1, 1))
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.5, 0.999), 0.0)


WALK_DEMO = "walk 4 0.001 adamw cosine 300 1.0"
OLD_SETTINGS = {
    "filelist": None, "videos": "v", "made_clips": 64, "cache_mb": 2000, "original_sampling": False,
    "objective": "timecycle", "side": 64, "patch": 56, "video_length": 4, "frame_gap": 1, "pred_distance": 4,
    "lamda": 0.1, "walk_over": "crops", "width": 64, "temperature": 0.07, "edge_dropout": 0.1, "batch": 2,
    "epochs": 30, "steps": 3, "minutes": None, "optimiser": "adam", "lr": 0.0002, "momentum": 0.25,
    "weight_decay": 0.0, "clip": 1.0, "schedule": "constant", "warmup": 0, "pretrained": None, "part": None,
    "freeze_batchnorm": False, "sync_batchnorm": False, "accumulate": 2, "seed": 3, "device": "auto", "gpu_id": None,
    "workers": 0, "autocast": False, "channels_last": True, "compile": False, "checkpoint_activations": False,
    "checkpoint": "run", "resume": None, "save_every": 1, "keep": 20, "log_every": 10, "pictures_every": 3,
    "evaluate_every": 0, "evaluate_on": None,
}  # fmt: skip
"""As versions before 0.1.0 stored them in checkpoints."""


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        (
            {},
            TimeCycleSettings,
            {"frame_side": 64, "patch_side": 56, "frame_gap": 1, "optimizer": "adam", "beta1": 0.25},
        ),
        ({"optimiser": "sgd"}, TimeCycleSettings, {"optimizer": "sgd", "momentum": 0.95}),
        ({"objective": "walk"}, CropWalkSettings, {"crop_side": 64, "max_frame_gap": 1, "width": 64}),
        (
            {"objective": "walk", "walk_over": "grid", "optimiser": "adamw"},
            GridWalkSettings,
            {"frame_side": 64, "cell_side": 56, "max_frame_gap": 1, "optimizer": "adamw", "beta1": 0.25},
        ),
    ],
)
def test_settings_of_version_0_1_are_read_by_their_names_now(changes, kind, expected):
    settings = resolved({"resume": "auto"}, OLD_SETTINGS | changes)
    assert type(settings) is kind
    expected = expected | {"max_grad_norm": 1.0, "visualize_every": 3, "synthetic_clips": 64, "seed": 3}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert resolved({"resume": "auto"}, settings.to_json()) == settings
    with pytest.raises(InputError, match="-side is 32, and 64 in the run that is gone on from"):
        resolved({"side": 32}, OLD_SETTINGS | changes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--objective timecycle --side 64 --patch 56", {"frame_side": 64, "patch_side": 56}),
        ("--objective walk --side 64 --frame_gap 5", {"crop_side": 64, "max_frame_gap": 5}),
        ("--objective walk --walk-over grid --side 64 --patch 16", {"frame_side": 64, "cell_side": 16}),
        ("--optim adam --momentum 0.25", {"optimizer": "adam", "beta1": 0.25}),
        ("--optimiser sgd --momentum 0.25", {"optimizer": "sgd", "momentum": 0.25}),
        ("--momentum 0.25", {"optimizer": "adamw", "beta1": 0.25}),
        (
            "--clip 3 --made-clips 5 --pictures-every 7",
            {"max_grad_norm": 3, "synthetic_clips": 5, "visualize_every": 7},
        ),
    ],
)
def test_options_of_version_0_1_are_those_of_the_objective(words, expected):
    settings = resolved(read_command_line(words.split())[0])
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--objective timecycle --temperature 1",
            "--temperature is given; expected it left out with --objective timecycle",
        ),
        (
            "--objective timecycle --walk-over grid",
            "--walk-over is given; expected it left out with --objective timecycle",
        ),
        ("--videos v --width 32", "--width is given; expected it left out with --objective timecycle"),
        (
            "--objective walk --lamda 1",
            "--lamda is given; expected it left out with --objective walk --walk-over crops",
        ),
        ("--patch 16", "--patch is given; expected it left out with --objective walk --walk-over crops"),
        ("--original-sampling", "--original-sampling is given; expected it left out with --objective walk"),
        (
            "--walk-over grid --crop-side 64",
            "--crop-side is given; expected it left out with --objective walk --walk-over grid",
        ),
        ("--optim sgd --beta1 0.5", "--beta1 is given; expected it left out with --optimizer sgd"),
        ("--momentum 0.5 --beta1 0.5", "--momentum is given beside --beta1, of which it is another name; expected one"),
        ("--side 64 --crop-side 64", "--side is given beside --crop-side, of which it is another name; expected one"),
    ],
)
def test_options_of_other_objectives_or_optimizers_are_refused(words, sentence):
    """Also when a run is resumed."""
    given = read_command_line(words.split())[0]
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        resolved(given)
    choice = {name: given[name] for name in ("objective", "optimizer", "videos") if name in given}
    choice |= {"walk_over": "grid"} if "grid --crop-side" in words else {}
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        resolved(given, resolved(choice).to_json())


def test_momentum_is_that_of_the_optimizer():
    weight = torch.nn.Linear(1, 1)
    sgd = make_optimizer(resolved({"optimizer": "sgd", "momentum": 0.25}), weight)
    assert (type(sgd), sgd.defaults["momentum"]) == (torch.optim.SGD, 0.25)
    assert make_optimizer(resolved({"optimizer": "sgd"}), weight).defaults["momentum"] == 0.95
    assert make_optimizer(resolved({"momentum": 0.25}), weight).defaults["betas"] == (0.25, 0.999)


def test_aliases_of_options():
    words = shlex.split("--train-batch 4 --learning-rate 0.1 --wd 0.2 -j 3 -c x")
    assert read_command_line(words)[0].items() >= {"batch": 4, "lr": 0.1, "weight_decay": 0.2, "workers": 3}.items()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--T 0.07", "--T is 0.07; expected it left out, as the temperature is 512 ** -0.5"),
        ("--hist 2", "--hist is 2; expected it left out"),
        ("--pretrained_imagenet", "--pretrained_imagenet is ; expected it left out, as no such weights are shipped"),
        ("--gridSize five", "--gridSize is five; expected it left out"),
    ],
)
def test_published_options_that_would_change_the_result_are_refused(words, sentence):
    with raises_input_error(sentence):
        read_command_line(words.split())


@pytest.mark.parametrize("words", ["--nonsense 3", "--lr fast", "--objective other", "--batch 3"])
def test_options_that_argparse_refuses(words, capsys):
    with pytest.raises(SystemExit) as ended:
        read_command_line(words.split())
    assert ended.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch": 0}, "--batchSize is 0; expected 1 or more"),
        ({"lr": 0.0}, "--lr is 0.0; expected a positive number"),
        ({"minutes": float("inf")}, "--minutes is inf; expected a positive number"),
        ({"momentum": 1.0}, "--momentum is 1.0; expected a number in [0, 1)"),
        ({"beta1": -0.1}, "--beta1 is -0.1; expected a number in [0, 1)"),
        ({"weight_decay": -1.0}, "--weight-decay is -1.0; expected 0 or more"),
        ({"compile": True, "checkpoint_activations": True}, "expected one of them"),
    ],
)
def test_values_out_of_range_are_named(values, sentence):
    with raises_input_error(sentence):
        RunSettings(**values)


def test_where_values_come_from():
    """Command line, checkpoint, demo, objective, default: the first that has a value."""
    stored = resolved({"filelist": None, "objective": "walk", "lr": 0.3}).to_json()
    assert (stored["lr"], stored["optimizer"], stored["width"], stored["minutes"]) == (0.3, "adamw", 16, 1.0)
    assert "momentum" not in stored
    again = resolved({"log_every": 7, "resume": "auto"}, stored)
    assert (again.lr, again.log_every, again.width, again.minutes) == (0.3, 7, 16, None)
    with pytest.raises(InputError, match="--width is 8, and 16 in the run that is gone on from"):
        resolved({"width": 8}, stored)
    constant = resolved({"schedule": "constant"}).to_json()
    assert resolved({"steps": 999}, constant).steps == 999


def helped(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, str]]:
    """The introduction of --help, and the defaults that it shows by option."""
    with pytest.raises(SystemExit) as ended:
        read_command_line(words.split())
    assert ended.value.code == 0
    about, options = capsys.readouterr().out.split("\noptions:\n")
    found = {}
    for entry in re.split(r"\n  (?=-)", "\n" + options)[1:]:
        names = re.split(r"\s{2,}", entry)[0]
        default = " ".join(entry.split()).rpartition("(default: ")[2].removesuffix(")")
        found |= {word.strip(","): default for word in names.split() if word.startswith("-")}
    return " ".join(about.split()), found


@pytest.mark.parametrize(
    ("words", "about", "sizes", "expected"),
    [
        ("--help", "walk --walk-over crops with no data given", "crop-side 96 max-frame-gap 3 width 16", WALK_DEMO),
        (
            "--objective walk --help",
            "walk --walk-over crops with no data given",
            "crop-side 96 max-frame-gap 3 width 16",
            WALK_DEMO,
        ),
        (
            "-h --objective=timecycle",
            "timecycle with no data given",
            "frame-side 96 patch-side 56 frame_gap 2",
            "walk 2 0.0002 adam constant 300 1.0",
        ),
        (
            "--videos x --help",
            "timecycle with data given",
            "frame-side 240 patch-side 80 frame_gap 2",
            "timecycle 36 0.0002 adam constant --epochs-decides no-limit",
        ),
        (
            "--help --filelist x --objective walk",
            "walk --walk-over crops with data given",
            "crop-side 128 max-frame-gap 3 width 32",
            "timecycle 12 0.001 adamw cosine --epochs-decides no-limit",
        ),
        (
            "--objective walk --walk-over grid --videos x -h",
            "walk --walk-over grid with data given",
            "frame-side 256 cell-side 64 max-frame-gap 2 width 64",
            "timecycle 20 0.001 adamw cosine --epochs-decides no-limit",
        ),
    ],
)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_shows_the_options_of_the_chosen_objective(words, about, sizes, expected, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    said, shown = helped(words, capsys)
    assert f"those of --objective {about}" in said
    names, values = sizes.split()[::2], sizes.split()[1::2]
    assert [shown[f"--{name}"] for name in names] == values
    common = shlex.split("--objective --batchSize --lr --optim --schedule --steps --minutes")
    assert [shown[name].replace(" ", "-") for name in common] == expected.split()
    assert not {"--side", "--patch"} & shown.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("data", ["", "--videos x"])
def test_help_shows_every_default_that_is_used_and_no_other_option(kind, optimizer, data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = f"{kind.command()} --optimizer {optimizer} {data}".split()
    settings = resolved(read_command_line(words)[0])
    assert type(settings) is kind
    _, shown = helped(" ".join([*words, "--help"]), capsys)
    for name, each in OPTIONS.items():
        if name not in kind.names() or not applies(name, optimizer):
            assert flag(name) not in shown, name
            continue
        value = getattr(settings, name)
        if flag(name) in words:
            continue
        expected = each.metadata["none"] if value is None else str(value)
        if isinstance(value, bool):
            expected = flag(name) if value else flag(name).replace("--", "--no-", 1)
        assert shown[flag(name)] == expected, name


def test_help_ignores_invalid_words_after_it(capsys):
    said, defaults = helped("--help --objective nonsense", capsys)
    assert "--objective walk" in said
    assert defaults["--lr"] == "0.001"
    _, defaults = helped("--help --lr fast --objective timecycle", capsys)
    assert defaults["--lr"] == "0.0002"


def test_epochs_replace_the_steps_of_the_demo():
    given = ({}, {"epochs": 2}, {"epochs": 2, "steps": 5})
    assert [resolved(values).steps for values in given] == [300, None, 5]


def test_schedules():
    settings = RunSettings(lr=1.0, schedule="cosine", warmup=2)
    optimizer = make_optimizer(settings, torch.nn.Linear(1, 1))
    schedule = make_schedule(settings, optimizer, 6)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466])


def test_random_states_are_restored():
    seed_everything(5)
    states = rng_states()

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002  the global state is what is kept

    expected = draws()
    draws()
    restore_rng_states(states)
    assert draws() == expected
