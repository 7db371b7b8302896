"""Published layouts of ResNets: synthetic files with their parameter names give the network of each method."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.resnets import features, random_weights
from tests.training_runs import assert_same
from timecycle import evaluate_davis, load_features
from timecycle.checkpoints.networks import LAYOUTS, convert, load_encoder
from timecycle.models.encoder import Encoder, Trunk

State = dict[str, Tensor]
IMAGES = torch.randn(2, 3, 45, 58, generator=torch.Generator().manual_seed(1))


def prefixed(prefix: str, weights: State, *, classifier: bool = False) -> State:
    return {prefix + name: value for name, value in weights.items() if classifier or not name.startswith("fc.")}


def crw(weights: State) -> dict:
    """As train.py of videowalk saves it, with optimizer, scheduler and command line."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30])
    head = {"selfsim_fc.0.weight": torch.randn(128, 512), "selfsim_fc.0.bias": torch.randn(128)}
    return {
        "model": prefixed("encoder.model.", weights) | head,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 24,
        "args": argparse.Namespace(model_type="scratch", patch_size=[64, 64, 3], dropout=0.1),
    }


def crw_with_padding_modules(weights: State) -> dict:
    """The names that test.py of videowalk renames: the 3x3 convolutions and the stem are second in a Sequential."""
    content = crw(weights)
    content["model"] = {
        name.replace(".weight", ".1.weight") if name.endswith(("conv1.weight", "conv2.weight")) else name: value
        for name, value in content["model"].items()
    }
    return content


def vfs(weights: State) -> dict:
    """As mmcv saves a SimSiamBaseTracker: convolution, normalization and activation in one ConvModule."""
    state = {"iteration": torch.tensor(0.0)}
    for name, value in prefixed("", weights).items():
        *block, module, part = name.split(".")
        if block[-1:] == ["downsample"]:
            module = "conv" if module == "0" else "bn"
        else:
            module = f"conv{module[-1]}." + ("conv" if module.startswith("conv") else "bn")
        state[".".join(["backbone", *block, module, part])] = value
    state["img_head.projection_fcs.0.weight"] = torch.randn(8, 8)
    state["img_head.predictor_fcs.1.num_batches_tracked"] = torch.tensor(7)
    return {"meta": {"epoch": 100, "config": "model = dict()"}, "state_dict": state}


def moco(weights: State, query: str = "encoder_q", key: str = "encoder_k") -> dict:
    other = {name: -value for name, value in weights.items()}
    state = prefixed(f"module.{query}.", weights) | {f"module.{query}.fc.2.bias": torch.randn(128)}
    # The key encoder comes first, so that taking the first encoder is an error.
    state = prefixed(f"module.{key}.", other) | state
    state |= {"module.queue": torch.randn(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def uvc(weights: State) -> dict:
    state = prefixed("module.gray_encoder.", weights)
    state |= {"module.rgb_encoder.conv1.weight": torch.randn(3, 3, 1, 1), "module.decoder.conv7.bias": torch.randn(128)}
    state |= {"module.normalize.mean": torch.randn(3), "module.normalize.std": torch.randn(3)}
    return {"epoch": 30, "state_dict": state, "best_loss": 0.1}


ZEROS = ((1, 2, 1), "constant")
REFLECT = ((1, 2, 1), "reflect")
PUBLISHED = {
    "torchvision-18": (18, dict, ZEROS),
    "torchvision-50": (50, dict, ZEROS),
    "crw": (18, crw, REFLECT),
    "crw, padding modules": (18, crw_with_padding_modules, REFLECT),
    "uvc": (18, uvc, ((1, 2, 1, 1), "constant")),
    "vfs-18": (18, vfs, ZEROS),
    "vfs-50": (50, vfs, ZEROS),
    "moco v2": (50, moco, ZEROS),
    "moco v3": (50, lambda weights: moco(weights, "base_encoder", "momentum_encoder"), ZEROS),
    "moco, no DataParallel": (50, lambda weights: prefixed("encoder_q.", weights, classifier=True), ZEROS),
    "vfs, converted": (18, lambda weights: {"state_dict": prefixed("", weights), "meta": {}}, ZEROS),
}


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Callable[[dict], Path]]:
    """Write a file by torch.save; it is removed after the test, since pytest keeps folders and these are large."""
    path = tmp_path / "weights.pth"

    def save(content: dict) -> Path:
        torch.save(content, path)
        return path

    yield save
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_a_published_layout_gives_the_methods_features(name, saved):
    depth, layout, (strides, padding) = PUBLISHED[name]
    weights = random_weights(depth)
    network = load_features(saved(layout(weights)))
    found, expected = network(IMAGES), features(weights, IMAGES, strides, padding)
    assert found.shape == (2, network.channels, 6, 8)
    assert network.channels == 256 * (depth == 18 or 4) * (len(strides) - 2)
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.max().item(), rtol=0)


def test_the_synthetic_files_have_the_published_names(oracle: Path):
    # torchvision's resnet18 and resnet50 hold 122 and 320 tensors.
    weights = random_weights(50)
    assert (len(random_weights(18)), len(weights)) == (122, 320)
    recorded = json.loads((oracle / "state_dict_keys.json").read_text())["test_model"]
    trunk = {name: shape for name, shape in recorded.items() if name.startswith("module.encoderVideo.")}
    synthetic = {
        name: list(value.unsqueeze(2).shape if value.ndim == 4 else value.shape)
        for name, value in prefixed("module.encoderVideo.", weights).items()
    }
    assert synthetic == trunk
    # As tools/convert_weights of VFS reads them.
    assert {
        "backbone.conv1.conv.weight",
        "backbone.conv1.bn.running_var",
        "backbone.layer3.5.conv3.conv.weight",
        "backbone.layer3.5.conv3.bn.bias",
        "backbone.layer2.0.downsample.conv.weight",
        "backbone.layer2.0.downsample.bn.num_batches_tracked",
    } < set(vfs(weights)["state_dict"])
    # As test.py of videowalk reads them.
    assert {
        "encoder.model.conv1.1.weight",
        "encoder.model.layer1.1.conv2.1.weight",
        "encoder.model.layer2.0.downsample.0.weight",
    } < set(crw_with_padding_modules(weights)["model"])


@torch.inference_mode()
def test_a_named_layout_overrides_the_guess(saved):
    weights = random_weights(18)
    path = saved(crw(weights))
    zeros, reflect = (features(weights, IMAGES, *how) for how in (ZEROS, REFLECT))
    assert (zeros - reflect).abs().max() > 0.01 * reflect.max()
    tolerance = {"atol": 1e-4 * zeros.max().item(), "rtol": 0}
    torch.testing.assert_close(load_features(path, "crw-zeropad")(IMAGES), zeros, **tolerance)
    torch.testing.assert_close(load_features(path, "crw")(IMAGES), reflect, **tolerance)


@torch.inference_mode()
def test_timecycles_files_give_its_encoder_or_its_trunk(release_checkpoint: Path, tmp_path):
    expected = load_encoder(release_checkpoint)
    ours, standard = convert(release_checkpoint, tmp_path)
    for path in (release_checkpoint, ours):
        network = load_features(path)
        assert isinstance(network, Encoder)
        assert not network.training
        assert_same(network.state_dict(), expected.state_dict())
    trunk = load_features(standard)
    assert isinstance(trunk, Trunk)
    assert_same(trunk.state_dict(), expected.trunk.state_dict())
    images = IMAGES[..., :40, :56].double()
    wanted = expected.trunk.double()(images)
    torch.testing.assert_close(trunk.double()(images), wanted, atol=1e-12 * wanted.max().item(), rtol=0)


@pytest.mark.parametrize(("method", "layout"), [("crw", crw), ("vfs", vfs)])
def test_a_loaded_network_is_evaluated_under_its_protocol(method, layout, saved, small_davis: Path):
    network = load_features(saved(layout(random_weights(18))))
    # Smaller than the protocol's 480 pixels.
    sizes = {} if method == "crw" else {"side": 64}
    scores = evaluate_davis(network, small_davis, method, progress=False, **sizes)
    # The square moves two pixels a frame: random weights follow it where features are normalized (not under uvc).
    assert scores.global_["J-Mean"] > 0.5


def test_half_precision_and_missing_counts_are_read(tmp_path):
    weights = {k: v.half() for k, v in random_weights(18).items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(weights, path)
    network = load_features(str(path))
    assert not network.training
    assert network.layer3[1].conv2.weight.dtype == torch.float32
    assert torch.equal(network.layer3[1].conv2.weight, weights["layer3.1.conv2.weight"].float())


BIAS = "layer4.1.bn2.bias"


def without(name: str) -> Callable[[State], State]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def replaced(name: str, *shape: int) -> Callable[[State], State]:
    return lambda weights: weights | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("depth", "damage", "layout", "said"),
    [
        (18, without("conv1.weight"), None, "ResNet-18 in the layout of torchvision: conv1.weight is missing"),
        (50, without("layer1.0.conv3.weight"), None, "ResNet-50 .*: layer1.0.conv3.weight is missing"),
        (18, without("layer3.1.bn2.running_var"), None, "layer3.1.bn2.running_var is missing"),
        (18, replaced("layer2.0.bn1.bias", 64), None, r"layer2.0.bn1.bias is \[64\] instead of \[128\]"),
        (18, replaced("layer1.2.conv1.weight", 64, 64, 3, 3), None, "ResNet-18 .*: layer1.2.conv1.weight is unexpect"),
        (50, replaced("layer3.6.conv1.weight", 256, 1024, 1, 1), None, "ResNet-50 .*: layer3.6.conv1.weight is unexp"),
        (18, replaced("conv1.weight", 64, 3, 2, 7, 7), None, r"conv1.weight is \[64, 3, 2, 7, 7\] instead of"),
        (18, dict, "moco", "ResNet-18 in the layout of moco: conv1.weight is missing"),
        (18, lambda w: prefixed("gray_encoder.", without(BIAS)(w)), None, f"{BIAS} is missing"),
        (18, lambda w: prefixed("policy.", w), None, r"no ResNet .* policy.conv1.weight\); expected a layout of timec"),
    ],
)
def test_damaged_state_dicts_are_refused(depth, damage, layout, said, saved):
    path = saved(damage(random_weights(depth)))
    with raises_input_error(match=rf"^{path} .*{said}"):
        load_features(path, layout)


def test_an_unknown_layout_is_refused_with_the_known_ones(saved):
    with raises_input_error(*LAYOUTS, match=r"layout is 'simsiam'; expected one of timecycle, .*torchvision"):
        load_features(saved(random_weights(18)), "simsiam")
