"""What a checkpoint holds, checked before any of it is taken: damage may hide behind a file's checksums.

Every function raises `Damage` with what is wrong, in words.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

MT_WORDS = 624  # of the state of a Mersenne Twister


class Damage(ValueError):
    """A part of a checkpoint is not what this program wrote."""


def expect(holds: object, what: str) -> None:
    """Raise Damage unless it holds."""
    if not holds:
        raise Damage(what)


def mapping(value: Any, what: str) -> dict[Any, Any]:
    """The value, if it is a dict."""
    expect(isinstance(value, dict), f"{what} is a {type(value).__name__}, not a dict")
    found: dict[Any, Any] = value
    return found


def is_whole(value: Any, least: int = 0, most: int = 2**53) -> bool:
    """Whether a value is an int in a range; True and False are none."""
    return type(value) is int and least <= value <= most


def is_same(value: Any, like: Any) -> bool:
    """Whether a value is of the same type and equal: a number, a text, None, or a list or tuple of them."""
    if type(value) is not type(like):
        return False
    if isinstance(like, list | tuple):
        return len(value) == len(like) and all(map(is_same, value, like))
    return bool(value == like)


def check_tensor(value: Any, like: Tensor, what: str) -> None:
    """A dense tensor on the CPU of the shape and dtype of another, all its numbers finite."""
    expect(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    expect(value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized, f"{what} is odd")
    expect(value.shape == like.shape, f"{what} has the shape {list(value.shape)}, not {list(like.shape)}")
    expect(value.dtype == like.dtype, f"{what} is {value.dtype}, not {like.dtype}")
    expect(not value.is_floating_point() or value.isfinite().all(), f"{what} holds numbers that are not finite")


def check_model(state: Any, model: nn.Module) -> None:
    """A state of the model: the same names, shapes and dtypes."""
    own = model.state_dict()
    mapping(state, "model")
    if other := sorted(map(str, set(state) ^ set(own))):
        raise Damage(f"{other[0]} is {'missing' if other[0] in own else 'not of this model'}")
    for name, value in own.items():
        check_tensor(state[name], value, name)


def check_progress(progress: Any, fields: Mapping[str, Any]) -> None:
    """Steps and the best score; `fields` are those of a new run."""
    mapping(progress, "progress")
    expect(set(progress) == set(fields), "progress has other entries")
    expect(is_whole(progress["step"]), "progress has no number of steps")
    expect(is_whole(progress["best_step"], 0, progress["step"]), "progress has no step of the best evaluation")
    score = progress["best_score"]
    expect(type(score) is float and (score == -1 or 0 <= score <= 1), "progress has no score in [0, 1]")
    expect((score == -1) == (progress["best_step"] == 0), "progress has a score without a step, or a step without one")


def check_schedule(state: Any, schedule: LRScheduler, step: int) -> list[float]:
    """A state of the schedule after so many steps; returns the learning rates that it stands at."""
    own = schedule.state_dict()
    mapping(state, "schedule")
    # Other versions of PyTorch have entries of their own.
    shared = set(state) & set(own)
    expect({"last_epoch", "_step_count", "base_lrs", "_last_lr", "lr_lambdas"} <= shared, "schedule lacks entries")
    expect(all(type(state[name]) is type(own[name]) for name in shared), "schedule has entries of other types")
    expected = {"last_epoch": step, "_step_count": step + 1} | {name: own[name] for name in ("base_lrs", "lr_lambdas")}
    for name, value in expected.items():
        expect(is_same(state[name], value), f"schedule has another {name} than its run at step {step}")
    rates = [base * factor(step) for base, factor in zip(own["base_lrs"], schedule.lr_lambdas, strict=True)]  # type: ignore[attr-defined]  # a LambdaLR
    expect(are_close(state["_last_lr"], rates), "schedule stands at another learning rate")
    return rates


def are_close(values: Any, expected: list[float]) -> bool:
    """Whether values are floats near to others; other chips' libraries round otherwise."""
    if not isinstance(values, list) or len(values) != len(expected):
        return False
    return all(
        type(value) is float and math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-12)
        for value, other in zip(values, expected, strict=True)
    )


def check_optimiser(state: Any, optimiser: optim.Optimizer, step: int, rates: list[float]) -> None:
    """A state of the optimiser after so many steps at these learning rates, over the same parameters."""
    own = optimiser.state_dict()
    mapping(state, "optimiser")
    expect(set(state) == set(own), "optimiser has other entries")
    groups = state["param_groups"]
    expect(isinstance(groups, list) and len(groups) == len(own["param_groups"]), "optimiser has other groups")
    for group, like, rate in zip(groups, own["param_groups"], rates, strict=True):
        mapping(group, "optimiser's group")
        for name in set(like) & set(group) - {"lr"} | {"params", "initial_lr"}:
            expect(is_same(group.get(name), like[name]), f"optimiser has another {name}")
        expect(are_close([group.get("lr")], [rate]), "optimiser stands at another learning rate")
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments = mapping(state["state"], "optimiser's state")
    # Every parameter takes part in every step.
    expect(set(moments) == set(range(len(parameters) if step else 0)), "optimiser knows other parameters")
    names = {"momentum_buffer"} if isinstance(optimiser, optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for index, values in moments.items():
        expect(set(mapping(values, "optimiser's state")) == names, f"optimiser has other entries of parameter {index}")
        for name, value in values.items():
            what = f"optimiser's {name} of parameter {index}"
            if name == "step":
                check_tensor(value, torch.tensor(0.0), what)
                expect(float(value) == step, f"{what} is another than progress's")
            else:
                check_tensor(value, parameters[index], what)


def check_skipped(skipped: Any) -> None:
    """How often, by 'name: reason'."""
    counts = mapping(skipped, "skipped")
    expect(all(isinstance(n, str) and is_whole(count, 1) for n, count in counts.items()), "skipped holds no counts")


def check_random(states: Any) -> None:
    """States of the generators of some processes, tried on generators that nobody uses."""
    expect(isinstance(states, list) and states, "random has no states")
    for state in states:
        mapping(state, "random")
        try:
            random.Random().setstate(python_state(state))
            np.random.RandomState().set_state(numpy_state(state))
            torch.Generator().set_state(state["torch"])
            cuda = state["cuda"]
        except Damage:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise Damage(f"random holds no states: {' '.join(str(error).split())[:100]}") from None
        expect(cuda is None or (isinstance(cuda, Tensor) and cuda.dtype == torch.uint8), "random has no GPU's state")
        if cuda is not None and torch.cuda.is_available():
            check_tensor(cuda, torch.cuda.get_rng_state(), "random's state of the GPU")


def python_state(state: dict[str, Any]) -> tuple[Any, ...]:
    """The state of Python's generator among those of a process, as `random.setstate` takes it."""
    version, internal, gauss = state["python"]
    words = [word for word in internal if is_whole(word, 0, 2**32 - 1)]
    expect(version == 3 and len(words) == len(internal) == MT_WORDS + 1, "random has no state of Python's generator")
    expect(gauss is None or type(gauss) is float, "random has no state of Python's generator")
    return version, tuple(words), gauss


def numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of NumPy's generator among those of a process, as `numpy.random.set_state` takes it."""
    found = mapping(state["numpy"], "random's numpy")
    inner = mapping(found["state"], "random's numpy")
    key = inner["key"]
    check_tensor(key, torch.empty(MT_WORDS, dtype=torch.int64), "random's numpy")
    expect(bool(((key >= 0) & (key < 2**32)).all()), "random's numpy holds no words of 32 bits")
    expect(is_whole(inner["pos"], 0, MT_WORDS), "random's numpy has no position")
    expect(found["has_gauss"] in (0, 1) and type(found["gauss"]) is float, "random's numpy has no next number")
    return found | {"state": inner | {"key": key.numpy().astype(np.uint32)}}
