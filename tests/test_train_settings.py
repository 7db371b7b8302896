"""train.py's command line: the published program's options, what is refused, and where each value comes from."""

import random
import shlex

import numpy as np
import pytest
import torch

from timecycle.errors import InputError
from timecycle.training.checkpoints import random_states, restore_random_states, seed_everything
from timecycle.training.optimisers import make_optimiser, make_schedule
from timecycle.training.settings import Settings, read_command_line, resolved

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
    optimiser = make_optimiser(settings, torch.nn.Linear(1, 1))
    assert type(optimiser) is torch.optim.Adam
    assert (optimiser.defaults["betas"], optimiser.defaults["weight_decay"]) == ((0.5, 0.999), 0.0)


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
    assert (stored["lr"], stored["optimiser"], stored["width"], stored["minutes"]) == (0.3, "adamw", 16, 1.0)
    again = resolved({"log_every": 7, "resume": "auto"}, stored)
    assert (again.lr, again.log_every, again.width, again.minutes) == (0.3, 7, 16, None)
    with pytest.raises(InputError, match="--width is 8, and 16 in the run that is gone on from"):
        resolved({"width": 8}, stored)
    constant = resolved({"schedule": "constant"}).to_json()
    assert resolved({"steps": 999}, constant).steps == 999


def test_schedules():
    settings = Settings(lr=1.0, schedule="cosine", warmup=2)
    optimiser = make_optimiser(settings, torch.nn.Linear(1, 1))
    schedule = make_schedule(settings, optimiser, 6)
    rates = []
    for _ in range(6):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466])


def test_random_states_come_back():
    seed_everything(5)
    states = random_states()

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002  the global state is what is kept

    expected = draws()
    draws()
    restore_random_states(states)
    assert draws() == expected
