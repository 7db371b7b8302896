"""Callers' extractors: how they and their modules are found, put into eval mode and restored; their errors."""

import functools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import test_davis
import timecycle
from tests.assertions import raises_input_error
from timecycle.data.images import read_rgb
from timecycle.errors import InputError
from timecycle.features import extractors
from timecycle.features.extractors import CallableExtractor, evaluating, held_modules, import_extractor
from timecycle.propagation.protocols import protocol
from timecycle.propagation.video import labels_of_maps, propagate_frames

CPU = torch.device("cpu")


class Net(nn.Module):
    """A network that differs in training mode: batch normalization and dropout."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 12, patch, patch)
        self.norm = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(12).eval()
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 12, h, w]."""
        return self.frozen(self.drop(self.norm(self.project(images))))

    forward = encode


def network(patch: int = 8) -> Net:
    torch.manual_seed(0)
    return Net(patch)


def images(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


class Holder:
    """An extractor that holds its network."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 12, h, w]."""
        held = self.held["net"] if isinstance(self.held, dict) else self.held
        return held(images)


class Slotted(Holder):
    """The same in a slot."""

    __slots__ = ("held",)


shared_net: Net | None = None


def by_global(images: Tensor) -> Tensor:
    return shared_net(images)


def by_another(images: Tensor) -> Tensor:
    return by_global(images)


here = sys.modules[__name__]


def of_a_module(images: Tensor) -> Tensor:
    return here.shared_net(images)


def closed_over(net: Net):
    return lambda images: net(images)


@torch.no_grad()
def decorated(images: Tensor) -> Tensor:
    return shared_net(images)


HELD = {
    "a module": lambda net: net,
    "its method": lambda net: net.encode,
    "functools.partial": lambda net: functools.partial(net.encode),
    "partial of a function": lambda net: functools.partial(lambda net, images: net(images), net),
    "a default": lambda net: lambda images, net=net: net(images),
    "an attribute": Holder,
    "an attribute of an attribute": lambda net: Holder(Holder(net.encode)),
    "a dictionary": lambda net: Holder({"net": net}),
    "a slot": Slotted,
    "a method of a holder": lambda net: Holder(net).__call__,
    "a closure": closed_over,
    "a global": lambda net: by_global,
    "a global of a global": lambda net: by_another,
    "a global of another module": lambda net: of_a_module,
    "a decorated function": lambda net: decorated,
}


@pytest.mark.parametrize("how", HELD)
def test_modules_are_found_put_into_eval_mode_and_restored(how, monkeypatch):
    net = network().train()
    net.frozen.eval()
    monkeypatch.setattr(sys.modules[__name__], "shared_net", net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = network().eval()(images())
    with evaluating(HELD[how](net), None) as features:
        assert not any(part.training for part in net.modules())
        torch.testing.assert_close(features(images()), expected)
    modes = {name: part.training for name, part in net.named_modules()}
    assert modes == {"": True, "project": True, "norm": True, "drop": True, "frozen": False}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_mode_of_every_submodule_is_restored_after_an_error():
    net = network().eval()
    net.drop.train()  # in another mode than its parent
    with pytest.raises(InputError, match="ZeroDivisionError"), evaluating(lambda x: (net, 1 / 0), None) as features:
        features(images())
    assert [net.training, net.norm.training, net.drop.training] == [False, False, True]


def test_modes_are_set_by_the_modules_own_train():
    class Merging(nn.Module):
        """Merges its weights to evaluate, as adapters do."""

        def __init__(self) -> None:
            super().__init__()
            self.merged = False

        def train(self, mode: bool = True) -> "Merging":
            self.merged = not mode
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            return images if self.merged else images * 0

    net = nn.Sequential(Merging())
    with evaluating(net, None) as features:
        assert torch.equal(features(images()), images())
    assert [net[0].training, net[0].merged] == [True, False]


def test_a_module_is_found_once_and_long_lists_are_not_searched():
    net = network()
    both = Holder({"net": net, "part": net.norm, "data": [network()] * 2000})
    assert held_modules(both) == [net]


def test_the_device_is_that_of_the_parameters():
    meta = network().to("meta")
    with evaluating(meta, None) as features:
        assert features.device.type == "meta"
    with evaluating(Holder({"net": meta, "other": network()}), None) as features:
        assert features.device.type == "cpu"
    with evaluating(meta, "cpu") as features:
        assert features.device.type == "cpu"


class Lazy:
    """Makes its module in its first call."""

    def __init__(self, make) -> None:
        self.make, self.net = make, None

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 12, h, w]."""
        self.net = self.net or self.make()
        return self.net(images)


def test_modules_made_in_the_first_call_are_put_into_eval_mode():
    def dropping() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.Dropout(0.9))
        nn.init.ones_(net[0].weight)
        return net

    with evaluating(Lazy(dropping), None) as features:
        expected = dropping()
        first = features(images())
        assert torch.equal(features(images()), first)
        assert first.count_nonzero() == first.numel()
        assert expected(images()).count_nonzero() < first.numel()
    with (
        pytest.raises(InputError, match="has made a Net in training mode, and its batch normalization has changed"),
        evaluating(Lazy(network), None) as features,
    ):
        features(images())
    with evaluating(Lazy(lambda: network().eval()), None) as features:
        torch.testing.assert_close(features(images()), network().eval()(images()))


def test_scores_are_the_same_from_the_shell_and_in_any_form(command_line, small_davis: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "trained.py").write_text(
        "import types\nfrom tests.test_extractors import network\n"
        "net = network()\nholder = types.SimpleNamespace(a=net)\n"
    )
    expected = timecycle.evaluate_davis(network().eval(), small_davis, "timecycle", progress=False, side=64)
    for name in ("net", "net.encode", "holder.a.encode"):
        arguments = ("--cropSize", 64, "--features", f"trained:{name}", "--save_path", f"out-{name}", "--device", "cpu")
        ended = command_line(test_davis.main, "--davis", small_davis, *arguments)
        assert ended.code == 0, ended.err
        with (tmp_path / f"out-{name}" / "results.json").open() as file:
            assert f'"J&F-Mean": {expected.global_["J&F-Mean"]}' in file.read()


def raising(error: BaseException):
    def extract(images: Tensor) -> Tensor:
        raise error

    return extract


@pytest.mark.parametrize(
    ("extract", "sentence"),
    [
        (raising(ValueError("two\n  lines")), "failed on an image of 96 x 64 pixels (ValueError: two lines)"),
        (raising(RuntimeError()), "the feature extractor failed on an image of 96 x 64 pixels (RuntimeError)"),
        (raising(SystemExit(3)), "failed on an image of 96 x 64 pixels (SystemExit: 3)"),
        (lambda images, other: images, "TypeError: <lambda>() missing 1 required positional argument"),
        (lambda: None, "TypeError: <lambda>() takes 0 positional arguments but 1 was given)"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "ran out of memory on cpu for an image of 96 x 64"),
        (raising(MemoryError()), "ran out of memory on cpu for an image of 96 x 64 pixels; expected a smaller one"),
    ],
)
def test_errors_of_an_extractor_become_one_sentence_with_their_cause(extract, sentence):
    features = CallableExtractor(extract, CPU)
    features.frame = "video.pkl, frame 7"
    with raises_input_error(sentence) as refused:
        features(images())
    assert str(refused.value).startswith("video.pkl, frame 7: the feature extractor ")
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None


def test_input_errors_and_ctrl_c_of_an_extractor_pass_through():
    features = CallableExtractor(raising(InputError("it needs more")), CPU)
    features.frame = "a.jpg"
    with pytest.raises(InputError, match=r"^a\.jpg: it needs more$"):
        features(images())
    with pytest.raises(KeyboardInterrupt):
        CallableExtractor(raising(KeyboardInterrupt()), CPU)(images())


def fourteen(images: Tensor) -> Tensor:
    """Features of 14-pixel patches; fails on sides that 14 does not divide."""
    batch, colors, height, width = images.shape
    parts = images.view(batch, colors, height // 14, 14, width // 14, 14)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // 14, width // 14)


def test_patches_of_14_pixels_on_sides_that_they_divide_and_not(small_davis: Path):
    right = timecycle.evaluate_davis(fourteen, small_davis, "timecycle", progress=False, side=98)
    assert right.global_["J-Mean"] > 0.5
    assert CallableExtractor(fourteen, CPU)(images(70, 518)).shape == (1, 588, 5, 37)
    with pytest.raises(
        InputError, match=r"96 x 64 pixels \(RuntimeError: .*; it works at 84 x 56: expected sides that"
    ):
        CallableExtractor(fourteen, CPU)(images())


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("name", ["timecycle", "dino", "vfs", "crw"])
def test_grids_of_other_strides_that_do_not_divide_the_image(small_davis: Path, patch, name):
    """Without padding: of 133 x 100 pixels, 9 x 7 or 8 x 6 positions."""

    def means(images: Tensor) -> Tensor:
        found = nn.functional.avg_pool2d(images, patch)
        return torch.cat([found, torch.ones_like(found)], dim=1)

    size = {"side": 100} | ({"resize": "short side"} if name == "crw" else {})
    scores = timecycle.evaluate_davis(means, small_davis, name, progress=False, k=2, **size)
    assert scores.global_["J-Mean"] > 0.5


def test_errors_name_the_file_of_the_frame(small_davis: Path):
    paths = sorted((small_davis / "JPEGImages" / "480p" / "first").glob("*.jpg"))
    calls = []

    def extract(images: Tensor) -> Tensor:
        calls.append(1)
        return nn.functional.avg_pool2d(images, 8) if len(calls) < 3 else 1 / 0

    def maps(sizes) -> np.ndarray:
        return np.ones((1, *sizes.grid), np.float32)

    for frames, name in ((paths, re.escape(str(paths[2]))), (map(read_rgb, paths), "frame 2")):
        calls.clear()
        said = rf"^{name}: the feature extractor failed on an image of 64 x 48 pixels \(Zero"
        with pytest.raises(InputError, match=said), evaluating(extract, None) as features:
            list(propagate_frames(frames, features, protocol("crw"), labels_of_maps(maps)))


@pytest.fixture
def modules(tmp_path, monkeypatch) -> Path:
    """A working directory to import from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import sys; sys.exit(1)", "cannot be imported: faulty_{n} ends the program (sys.exit)"),
        ("def f(:", "cannot be imported: SyntaxError: invalid syntax (faulty_{n}.py, line 1)"),
        ("raise RuntimeError('no\\n GPU')", "cannot be imported: RuntimeError: no GPU"),
        ("import not_there_at_all", "cannot be imported: No module named 'not_there_at_all'"),
        ("g = 1", "cannot be imported: module 'faulty_{n}' has no attribute 'f'"),
        ("f = 1", "is a int; expected a callable"),
        ("class f: pass", "is the class f; expected an instance of it, such as f()"),
    ],
)
def test_what_cannot_be_imported_is_refused(modules, request, source, sentence):
    number = abs(hash(request.node.name))
    (modules / f"faulty_{number}.py").write_text(source)
    with pytest.raises(InputError) as refused:
        import_extractor(f"faulty_{number}:f")
    assert str(refused.value) == f"--features faulty_{number}:f {sentence.format(n=number)}"
    assert (refused.value.__cause__ is not None) == ("cannot be imported" in sentence)


def test_dotted_names_and_ctrl_c_while_importing(modules):
    (modules / "dotted_module.py").write_text(
        "class a:\n    class b:\n        @staticmethod\n        def f(x): return 7\n"
    )
    assert import_extractor("dotted_module:a.b.f")(None) == 7
    (modules / "stopped_module.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        import_extractor("stopped_module:f")
    for place in (":f", "dotted_module:", ".dotted_module:a", "dotted_module:a..b"):
        with pytest.raises(InputError, match=f"^--features {place} cannot be imported: "):
            import_extractor(place)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [(Net, "features is the class Net; expected an instance"), ("network", "is a str; expected")],
)
def test_what_is_no_extractor_is_refused_from_python_too(small_davis: Path, features, sentence):
    with raises_input_error(sentence):
        timecycle.evaluate_davis(features, small_davis, progress=False)


def test_a_programs_modules_go_to_its_device():
    net = network()
    features = extractors.extractor_on(Holder(net), torch.device("meta"), torch.float32)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert not any(part.training for part in net.modules())
    assert features.device.type == "meta"
