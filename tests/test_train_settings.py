"""train.py's command line: the published program's options, what is refused, and where each value comes from."""

import random
import re
import shlex

import numpy as np
import pytest
import torch

from timecycle.errors import InputError
from timecycle.training.checkpointer import restore_rng_states, rng_states, seed_everything
from timecycle.training.objectives import make_optimizer, make_schedule
from timecycle.training.settings import FIELDS, Settings, flag, read_command_line, resolved

PUBLISHED = shlex.split("""
    --batchSize 36 --workers 12 --epochs 30 --lr 2e-4 --momentum 0.5 --weight-decay 0 --checkpoint runs/a --manualSeed 3
    --gpu-id 0,1 --predDistance 4 --seperate2d 0 --T 0.04419417382415922 --gridSize 9 --classNum 49 --lamda 0.1
    --pretrained_imagenet False --videoLen 4 --frame_gap 2 --hist 1 --optim adam -d data --evaluate
""")


def test_the_published_command_line_gives_the_published_numbers():
    given, unused = read_command_line([*PUBLISHED, "--filelist", "list.txt"])
    settings = resolved(given)
    assert sorted(unused) == ["--classNum", "--data", "--evaluate", "--seperate2d"]
    assert settings == Settings(
        filelist=settings.filelist, checkpoint=settings.checkpoint, workers=12, seed=3, gpu_id="0,1"
    )
    assert (settings.batch, settings.side, settings.patch, settings.clip) == (36, 240, 80, 10.0)
    optimizer = make_optimizer(settings, torch.nn.Linear(1, 1))
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.5, 0.999), 0.0)


def test_other_names_of_the_same():
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
    with pytest.raises(InputError) as refused:
        read_command_line(words.split())
    assert sentence in str(refused.value)


@pytest.mark.parametrize("words", ["--nonsense 3", "--lr fast", "--objective other", "--batch 3"])
def test_what_argparse_refuses(words, capsys):
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
        ({"momentum": 1.0}, "--momentum is 1.0 and --weight-decay 0.0; expected one in [0, 1) and one of 0 or more"),
        ({"compile": True, "checkpoint_activations": True}, "expected one of them"),
    ],
)
def test_values_that_mean_nothing_are_named(values, sentence):
    with pytest.raises(InputError) as refused:
        Settings(**values)
    assert sentence in str(refused.value)


def test_where_values_come_from():
    """Command line, checkpoint, demo, objective, field: the first that says it."""
    stored = resolved({"filelist": None, "objective": "walk", "lr": 0.3}).to_json()
    assert (stored["lr"], stored["optimizer"], stored["width"], stored["minutes"]) == (0.3, "adamw", 16, 1.0)
    again = resolved({"log_every": 7, "resume": "auto"}, stored)
    assert (again.lr, again.log_every, again.width, again.minutes) == (0.3, 7, 16, None)
    with pytest.raises(InputError, match="--width is 8, and 16 in the run that is gone on from"):
        resolved({"width": 8}, stored)
    constant = resolved({"schedule": "constant"}).to_json()
    assert resolved({"steps": 999}, constant).steps == 999


def helped(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, str]]:
    """What --help says of the whole, and the default that it says of each option."""
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
    ("words", "about", "expected"),
    [
        (
            "--help",
            "those of --objective walk --walk-over crops with no data given",
            "walk 96 3 4 16 0.001 adamw cosine 300 1.0",
        ),
        (
            "--objective walk --help",
            "those of --objective walk --walk-over crops with no data given",
            "walk 96 3 4 16 0.001 adamw cosine 300 1.0",
        ),
        (
            "-h --objective=timecycle",
            "those of --objective timecycle with no data given",
            "walk 96 2 2 64 0.0002 adam constant 300 1.0",
        ),
        (
            "--videos x --help",
            "those of --objective timecycle with data given",
            "timecycle 240 2 36 64 0.0002 adam constant --epochs-decides no-limit",
        ),
        (
            "--help --filelist x --objective walk",
            "those of --objective walk --walk-over crops with data given",
            "timecycle 128 3 12 32 0.001 adamw cosine --epochs-decides no-limit",
        ),
        (
            "--objective walk --walk-over grid --videos x -h",
            "those of --objective walk --walk-over grid with data given",
            "timecycle 256 2 20 64 0.001 adamw cosine --epochs-decides no-limit",
        ),
    ],
)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_shows_the_defaults_of_the_objective_at_hand(words, about, expected, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    said, defaults = helped(words, capsys)
    assert about in said
    shown = shlex.split("--objective --side --frame_gap --batchSize --width --lr --optim --schedule --steps --minutes")
    assert [defaults[name].replace(" ", "-") for name in shown] == expected.split()


@pytest.mark.parametrize("objective", ["timecycle", "walk --walk-over crops", "walk --walk-over grid"])
@pytest.mark.parametrize("data", ["", "--videos x"])
def test_help_shows_every_default_that_is_used(objective, data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = f"--objective {objective} {data}".split()
    settings = resolved(read_command_line(words)[0])
    _, defaults = helped(" ".join([*words, "--help"]), capsys)
    for name, each in FIELDS.items():
        value = getattr(settings, name)
        if flag(name) in words:
            continue
        expected = each.metadata["none"] if value is None else str(value)
        if isinstance(value, bool):
            expected = flag(name) if value else flag(name).replace("--", "--no-", 1)
        assert defaults[flag(name)] == expected, name


def test_help_comes_before_what_follows_it_and_is_wrong(capsys):
    said, defaults = helped("--help --objective nonsense", capsys)
    assert "--objective walk" in said
    assert defaults["--lr"] == "0.001"
    _, defaults = helped("--help --lr fast --objective timecycle", capsys)
    assert defaults["--lr"] == "0.0002"


def test_epochs_take_the_place_of_the_demos_steps():
    assert (resolved({}).steps, resolved({"epochs": 2}).steps, resolved({"epochs": 2, "steps": 5}).steps) == (
        300,
        None,
        5,
    )


def test_schedules():
    settings = Settings(lr=1.0, schedule="cosine", warmup=2)
    optimizer = make_optimizer(settings, torch.nn.Linear(1, 1))
    schedule = make_schedule(settings, optimizer, 6)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466])


def test_random_states_come_back():
    seed_everything(5)
    states = rng_states()

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002  the global state is what is kept

    expected = draws()
    draws()
    restore_rng_states(states)
    assert draws() == expected
