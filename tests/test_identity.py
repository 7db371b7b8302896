"""identity(): equal for extractors of equal features, different as soon as features may differ."""

import abc
import collections
import dataclasses
import functools
import importlib
import io
import logging
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timecycle.examples import dino_vits8
from timecycle.features.identity import identity

ROOT = Path(__file__).parents[1]


def network() -> nn.Sequential:
    """A network with the same weights in every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Dropout())


class Extractor:
    """An object that holds a network and a number."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.scale = net, 2.0

    def __call__(self, images: Tensor) -> Tensor:
        """Scaled features."""
        return self.net(images) * self.scale

    def features(self, images: Tensor) -> Tensor:
        """The network's."""
        return self.net(images)


def closure(net: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        return net(images).relu()

    return extract


def over_a_global(net: nn.Module) -> Callable[[Tensor], Tensor]:
    scope = {"net": net}
    exec("def inner(x): return net(x)\nextract = lambda x: inner(x)", scope)
    return scope["extract"]


HOLDERS = {
    "a module": lambda net: net,
    "its method": lambda net: net.forward,
    "an object": Extractor,
    "an object's method": lambda net: Extractor(net).features,
    "a closure under a decorator": closure,
    "a function of a global": over_a_global,
    "a partial": lambda net: functools.partial(torch.nn.Module.__call__, net),
    "compiled": torch.compile,
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
def test_identity_depends_on_weights_and_buffers_only(holder):
    known = identity(holder(network()))
    assert known is not None
    assert identity(holder(network())) == known
    net = network()
    held = holder(net)
    net.eval()
    assert identity(held) == known
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1e-6
    weights = identity(held)
    assert weights not in (known, None)
    net[1].running_mean[0] += 1e-6
    assert identity(held) not in (known, weights, None)


def test_identity_depends_on_attributes_constants_and_arrays():
    held = Extractor(network())
    known = identity(held)
    held.scale = 3.0
    assert identity(held) not in (known, None)
    table = np.arange(4.0)
    functions = [lambda x: x * 2, lambda x: x * 3, lambda x: x + 2, lambda x, k=2: x * k, lambda x: x * table]
    found = [identity(function) for function in functions]
    assert len({*found, None}) == len(functions) + 1
    table[2] += 1
    assert identity(functions[-1]) not in found


def test_identity_depends_on_files_named_in_code(tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    scope: dict = {}
    exec(f"def extract(x): return load({str(weights)!r})(x)", scope)
    known = identity(scope["extract"])
    weights.write_bytes(b"three")
    assert identity(scope["extract"]) not in (known, None)


@dataclasses.dataclass
class Configured:
    """A dataclass with a network and other fields."""

    net: nn.Module
    sizes: list[int] = dataclasses.field(default_factory=lambda: [8, 16])
    pattern: re.Pattern = re.compile("a+")
    log: logging.Logger = logging.getLogger(__name__)  # noqa: RUF009  one for all is meant
    last: collections.deque = dataclasses.field(default_factory=lambda: collections.deque([1, 2], maxlen=2))

    def __call__(self, images: Tensor) -> Tensor:
        """Features."""
        return self.net(images) * len(self.sizes)


class Slotted:
    """Holds its network in a slot."""

    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, images: Tensor) -> Tensor:
        """Features."""
        return self.net(images)


class Abstract(nn.Module, abc.ABC):
    """A network of an abstract base class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        return self.net(images)


@pytest.mark.parametrize("kind", [Configured, Slotted, Abstract])
def test_dataclasses_slots_and_abstract_classes_have_an_identity(kind):
    known = identity(kind(network()))
    assert known is not None
    assert identity(kind(network())) == known
    held = kind(network())
    with torch.no_grad():
        held.net[0].bias[0] += 1
    assert identity(held) not in (known, None)


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()


def load(name: str):
    sys.modules.pop(name, None)
    return importlib.import_module(name)


USERS = {
    "through another function": "import h\ndef second(x): return h.b(x)\ndef extract(x): return second(h.a(x))\n",
    "imported when it is called": "def extract(x):\n    import h\n    return h.b(x)\n",
    "taken when it is called": "def extract(x):\n    from h import b\n    return b(x)\n",
    "in a class": "import h\nclass E:\n    def __init__(self): self.k = h.K\n"
    "    def __call__(self, x): return h.b(x)\nextract = E()\n",
}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS.keys())
def test_identity_depends_on_the_users_modules(tmp_path, monkeypatch, user):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(tmp_path, "user", user)
    found = []
    for factor in (2, 3, 2):
        write(tmp_path, "h", f"K = 1\ndef a(x): return x + K\ndef b(x): return x * {factor}\n")
        load("h")
        found.append(identity(load("user").extract))
    assert None not in found
    assert found[0] == found[2] != found[1]


def test_computed_file_names_and_environment_leave_identity_unknown():
    def extract(images: Tensor) -> Tensor:
        return torch.load(ROOT / "weights" / "net.pt")(images)

    assert identity(extract) is None
    assert identity(lambda x: x * float(os.environ["SCALE"])) is None
    assert identity(lambda x: eval("x")) is None


def test_opaque_objects_have_no_identity():
    held = Extractor(network())
    held.lock = threading.Lock()
    assert identity(held) is None
    for hidden in ((i for i in range(3)), random.Random(0), io.BytesIO(b"weights")):
        assert identity(functools.partial(lambda x, source: x, source=hidden)) is None


def test_identity_is_the_same_in_another_process(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\nnet = nn.Conv2d(3, 4, 8, 8)\n"
        "names = {'a', 'b', 'c', 'd'}\ndef extract(x): return net(x) if names else x\n"
    )
    code = "from timecycle.features.identity import identity; import own; print(identity(own.extract))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert found != {"None\n"}


def test_an_example_has_an_identity_before_its_weights_are_loaded():
    assert identity(dino_vits8) is not None
