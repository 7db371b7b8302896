"""Checkpoints as training programs write them: nested and prefixed weights among other objects give the network."""

import argparse
import collections
import datetime
import itertools
import pathlib
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from timecycle import load_features
from timecycle.checkpoint import main
from timecycle.checkpoints.networks import load_encoder, read_state_dict
from timecycle.errors import InputError
from timecycle.models.encoder import Trunk
from timecycle.models.walk import CropWalk

State = dict[str, Tensor]
IMAGES = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def trunk(seed: int, padding: str = "zeros", width: int = 64) -> Trunk:
    """A ResNet-18 with running statistics other than the initial ones."""
    torch.manual_seed(seed)
    network = Trunk(18, 3, padding, width)
    network(torch.randn(2, 3, 32, 32))
    return network.eval()


WEIGHTS, OTHERS = (trunk(seed).state_dict() for seed in (0, 1))


def under(prefix: str, weights: State = WEIGHTS) -> State:
    return collections.OrderedDict((prefix + name, value) for name, value in weights.items())


@torch.inference_mode()
def computed(weights: State, padding: str = "zeros") -> Tensor:
    network = Trunk(18, 3, padding).eval()
    network.load_state_dict(weights)
    return network(IMAGES)


WANTED, OTHER = computed(WEIGHTS), computed(OTHERS)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Tensor]:
    """Features of the network in a file with this content; the file is removed, as pytest keeps folders."""
    path = tmp_path / "weights.pth"

    def features(content: object, layout: str | None = None, part: str | None = None) -> Tensor:
        torch.save(content, path)
        try:
            with torch.inference_mode():
                return load_features(path, layout, part)(IMAGES)
        finally:
            path.unlink()

    return features


@pytest.mark.parametrize("place", [
    "model", "teacher", "student", "state_dict", "state_dict_ema", "net", "network", "encoder", "backbone",
    "model_state_dict", "model_ema", "ema", "params", "params_ema", "checkpoint.model", "a.b.c",
])  # fmt: skip
def test_weights_are_found_in_nested_dicts(place, read):
    content: dict = under("module.")
    for key in reversed(place.split(".")):
        content = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, key: content}
    assert torch.equal(read(content), WANTED)


WRAPPINGS = ["module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "student.", "teacher."]


@pytest.mark.parametrize("wrapped", [
    *WRAPPINGS,
    *map("".join, itertools.islice(itertools.product(WRAPPINGS, repeat=2), 0, None, 11)),
    "module.module.", "module._orig_mod.module.", "model.module.encoder.", "student.module.backbone.",
    "model.net.model.",
])  # fmt: skip
def test_prefixes_of_wrappers_are_stripped(wrapped, read):
    assert "encoder.model." not in wrapped  # crw's
    assert torch.equal(read({"state_dict": under(wrapped)}), WANTED)


def test_prefixes_of_wrapped_stages_are_stripped(read):
    compiled = {name.replace("layer1.", "layer1._orig_mod.").replace("r3.0.", "r3.0.module."): value
                for name, value in under("module.").items()}  # fmt: skip
    assert len([name for name in compiled if "_orig_mod" in name]) > 10
    assert torch.equal(read(compiled), WANTED)


@pytest.mark.parametrize("prefix", ["encoder.model.", "module.encoder.model.", "model.encoder._orig_mod.model."])
def test_crws_prefix_still_means_padding_by_reflection(prefix, read):
    found = read({"model": under(prefix)})
    assert torch.equal(found, computed(WEIGHTS, "reflect"))
    assert not torch.equal(found, WANTED)


def test_crws_prefix_before_another_is_ambiguous(read):
    content = under("encoder.model.net.")
    with pytest.raises(InputError, match=r"its first is encoder\.model\.net\.conv1\.weight.*--layout"):
        read(content)
    assert torch.equal(read(content, "torchvision"), WANTED)


def test_simsiams_predictor_is_no_second_network(read):
    heads = {"module.predictor.layer1.0.weight": torch.ones(3, 3), "module.encoder.fc.0.weight": torch.ones(2, 2)}
    assert torch.equal(read({"state_dict": under("module.encoder.") | heads}), WANTED)


CHOICES = {
    "teacher.backbone": {"teacher": under("backbone."), "student": under("module.backbone.", OTHERS)},
    "state_dict_ema": {"state_dict": under("", OTHERS), "state_dict_ema": under(""), "epoch": 1},
    "model.teacher": {"model": under("student.", OTHERS) | under("teacher.")},
    "ema": under("", OTHERS) | {"ema": under("")},
    ".": under("") | under("module.", OTHERS),
    "encoder_k": under("encoder_q.", OTHERS) | under("encoder_k."),
}


@pytest.mark.parametrize("part", CHOICES)
def test_a_part_is_chosen_by_name(part, read):
    assert torch.equal(read(CHOICES[part], part=part), WANTED)


def test_a_part_is_chosen_by_one_of_its_names(read):
    assert torch.equal(read(CHOICES["teacher.backbone"], part="student"), OTHER)
    assert torch.equal(read(CHOICES["model.teacher"], part="teacher"), WANTED)


@pytest.mark.parametrize("part", [part for part in CHOICES if part != "encoder_k"])
def test_several_networks_need_a_choice(part, read):
    with pytest.raises(InputError, match=r"2 networks: .*--part") as refused:
        read(CHOICES[part])
    listed = str(refused.value).split("networks: ")[1].split(";")[0].split(", ")
    assert part in listed
    assert all(torch.equal(read(CHOICES[part], part=name), WANTED if name == part else OTHER) for name in listed)


def test_a_part_that_is_not_there_is_refused_with_those_that_are(read):
    with pytest.raises(InputError, match=r"part is 'queue', and \S+ holds student\.net, teacher\.net; expected"):
        read({"student": under("net."), "teacher": under("net.")}, part="queue")


def test_a_single_complete_network_needs_no_choice(read):
    damaged = {name: value for name, value in OTHERS.items() if not name.startswith("layer2.")}
    content = {"teacher": damaged, "student": WEIGHTS}
    assert torch.equal(read(content), WANTED)
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight is missing, .* and 20 more$"):
        read(content, part="teacher")


def test_the_same_network_twice_is_one(read):
    """As OpenSelfSup writes MoCo: the query encoder under two names, and the key encoder."""
    content = under("backbone.") | under("encoder_q.0.") | under("encoder_k.0.", OTHERS)
    assert torch.equal(read({"state_dict": content}), WANTED)


def test_mocos_query_encoder_is_read_even_if_only_the_key_encoder_is_complete(read):
    assert torch.equal(read(under("module.encoder_k.", OTHERS) | under("module.encoder_q.")), WANTED)
    damaged = {name: value for name, value in WEIGHTS.items() if name != "bn1.bias"}
    with pytest.raises(InputError, match=r"in the layout of moco: bn1\.bias is missing"):
        read(under("encoder_k.", OTHERS) | under("encoder_q.", damaged))


def test_unknown_names_need_an_explicit_layout(read):
    with pytest.raises(InputError, match=r"holds no ResNet under names that are known .*--layout"):
        read(under("policy."))
    assert torch.equal(read(under("policy."), "torchvision"), WANTED)
    assert torch.equal(read(under("policy.") | under("critic.", OTHERS), "torchvision", "policy"), WANTED)


class Windows:
    """Pickles as a path does on Windows."""

    def __reduce__(self) -> tuple:
        return (pathlib.WindowsPath, ("C:\\", "weights"))


class Settings:
    """A class that no reader knows."""


BESIDE = {
    "scalar": np.float64(71.2),
    "scalars": [np.bool_(True), np.int8(1), np.float16(1), np.longdouble(1), np.complex64(1j), np.str_("a"),
                np.void(b"a")],
    "array": np.arange(4.0),
    "arrays": [np.zeros((0, 3)), np.asfortranarray(np.ones((2, 3))), np.array(["a"]), np.array(["2020"], "M8[D]")],
    "array of objects": np.array([None, "a", {"b": 1}, Path("c")], dtype=object),
    "records": np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
    "more of numpy": [np.ma.array([1, 2], mask=[0, 1]), np.array(["a"], dtype=np.dtypes.StringDType()), np.float32],
    "dtypes": [np.dtype("f4"), np.dtype("M8[s]"), type(np.dtype("f4"))],
    "random": [np.random.RandomState(0), np.random.default_rng(0), np.random.get_state()],  # noqa: NPY002  as old programs store them
    "paths": [Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), Windows()],
    "namespaces": [argparse.Namespace(a=1, kind=int, path=Path("a")), types.SimpleNamespace(a={"b": np.int64(1)})],
    "collections": [collections.defaultdict(list, a=[1]), collections.deque([1], 3), collections.Counter("aab"),
                    collections.OrderedDict(a=1), frozenset([1]), range(3), slice(2)],
    "times": [datetime.datetime.now(datetime.UTC), datetime.date(2020, 1, 1), datetime.timedelta(1), datetime.time(1)],
    "torch": [torch.__version__, torch.float16, torch.device("cpu"), torch.Size([1])],
    "recursive": [],
}  # fmt: skip
BESIDE["recursive"].append(BESIDE["recursive"])


@pytest.mark.parametrize("name", BESIDE)
def test_harmless_objects_beside_the_weights_are_skipped(name, read):
    content = {"args": BESIDE[name], "state_dict": under("module."), "more": {"deep": [BESIDE[name]]}}
    assert torch.equal(read(content), WANTED)


def test_harmless_objects_in_the_format_before_zip_are_skipped(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(BESIDE | {"state_dict": under("module.")}, path, _use_new_zipfile_serialization=False)
    with torch.inference_mode():
        assert torch.equal(load_features(path)(IMAGES), WANTED)
    path.unlink()


def test_state_dicts_in_a_defaultdict_are_found(read):
    content: dict[str, Any] = collections.defaultdict(dict)
    content["state_dict"] = under("module.")
    assert torch.equal(read(content), WANTED)


def test_numpy_1_names_are_known(tmp_path):
    torch.save({"state_dict": WEIGHTS, "best": np.float64(1), "all": np.arange(3)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            data = new.read(entry)
            if entry.endswith("data.pkl"):
                assert b"numpy._core" in data
                data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
            old.writestr(entry, data)
    with torch.inference_mode():
        assert torch.equal(load_features(tmp_path / "old.pth")(IMAGES), WANTED)


def test_the_callers_safe_globals_are_kept(read):
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Settings, np.dtype, argparse.Namespace]):
        content = {"state_dict": WEIGHTS, "args": [Settings(), argparse.Namespace(a=np.dtype("f4")), np.float64(1)]}
        assert torch.equal(read(content), WANTED)
        assert np.dtype in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("beside", [Settings(), np.array([Settings()], dtype=object), {"a": [Settings]}])
def test_other_objects_are_refused_by_name(beside, read):
    with pytest.raises(
        InputError, match=r"is not a file of plain tensors \(it names tests\.test_state_dicts\.Settings\)"
    ):
        read({"state_dict": WEIGHTS, "config": beside})


def in_one_storage(weights: State) -> State:
    whole = torch.cat([value.flatten().float() for value in weights.values()])
    parts = whole.split([value.numel() for value in weights.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(weights.items(), parts, strict=True)}


STORED = {
    "parameters": {n: torch.nn.Parameter(v) if v.is_floating_point() else v for n, v in WEIGHTS.items()},
    "channels last": {n: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in WEIGHTS.items()},
    "one storage": in_one_storage(WEIGHTS),
    "float64": {n: v.double() if v.is_floating_point() else v for n, v in WEIGHTS.items()},
}  # fmt: skip


@pytest.mark.parametrize("form", STORED)
def test_tensors_are_read_however_they_are_stored(form, read):
    assert torch.equal(read(STORED[form]), WANTED)


@pytest.mark.parametrize(("form", "dtype"), [("pth", torch.bfloat16), ("safetensors", torch.float16)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".SafeTensors", ""])
def test_formats_are_detected_by_content(suffix, form, dtype, tmp_path):
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in WEIGHTS.items()}
    path = tmp_path / f"weights{suffix}"
    if form == "pth":
        torch.save({"model": half}, path)
    else:
        safetensors.torch.save_file(half, path)
    widened = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
    with torch.inference_mode():
        assert torch.equal(load_features(path)(IMAGES), computed(widened))
    path.unlink()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("conv1.weight", WEIGHTS["conv1.weight"].to(torch.complex64), "is complex64 instead of floating point$"),
        ("conv1.weight", WEIGHTS["conv1.weight"].int(), "is int32 instead of floating point$"),
        ("bn1.bias", torch.full((64,), torch.nan), "is not finite$"),
        ("conv1.weight", WEIGHTS["conv1.weight"].to_sparse(), "is stored in another form than dense values$"),
        ("conv1.weight", WEIGHTS["conv1.weight"].to("meta"), "is stored in another form than dense values$"),
        ("conv1.weight", torch.tensor(1.0), r"is \[\] instead of \[64, 3, 7, 7\]$"),
        ("conv1.1.weight", WEIGHTS["conv1.weight"], "conv1.weight is stored twice$"),
    ],
)
def test_invalid_weights_are_refused(name, value, said, read):
    with pytest.raises(InputError, match=said):
        read(WEIGHTS | {name: value})


def test_a_refusal_names_five_tensors_at_most(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(under("encoderVideo."), path)
    with pytest.raises(InputError, match=r"does not hold TimeCycle's encoder: .* and \d{3} more$") as refused:
        load_encoder(path)
    assert str(refused.value).count("trunk.") == 5
    assert "\n" not in str(refused.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder; expected a checkpoint"):
        load_features(tmp_path)


def test_a_state_dict_is_read_by_its_full_names(tmp_path):
    path = tmp_path / "weights.pth"
    optimizer = {"state": {"0": {"exp_avg": torch.ones(2)}}}
    torch.save({"optimizer": optimizer, "state_dict": under("module.")}, path)
    assert list(read_state_dict(path)) == [f"module.{name}" for name in WEIGHTS]


@pytest.mark.parametrize("width", [8, 64])
def test_a_walks_own_checkpoint_is_read_as_what_it_trained(width, tmp_path):
    """By its names alone, encoder.conv1.weight, it would be torchvision's with zero padding."""
    network = trunk(3, "reflect", width)
    path = tmp_path / "latest.pt"
    torch.save({"format": 1, "model": CropWalk(network).state_dict(), "settings": {"objective": "walk"}}, path)
    expected = trunk(3, "reflect", width)  # CropWalk has initialized its trunk again
    expected.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(load_features(path)(IMAGES), expected.eval()(IMAGES))


def test_the_command_line_refuses_and_takes_a_part(tmp_path, command_line):
    path = tmp_path / "weights.pth"
    torch.save({"teacher": WEIGHTS, "student": OTHERS}, path)
    refused = command_line(main, "convert", path, "--out", tmp_path / "out")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "teacher" in refused.err
    assert command_line(main, "convert", path, "--out", tmp_path / "out", "--part", "teacher").code == 0
    with torch.inference_mode():
        assert torch.equal(load_features(tmp_path / "out" / "weights.safetensors")(IMAGES), WANTED)
