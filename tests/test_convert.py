"""`convert` of every layout: a file that gives the same features, bit for bit, and a standard ResNet."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from tests.resnets import features, random_weights
from tests.test_layouts import crw, crw_with_padding_modules, moco, prefixed, uvc, vfs
from timecycle import load_features
from timecycle.checkpoint import main
from timecycle.checkpoints.networks import convert, load_encoder, save_encoder
from timecycle.errors import InputError
from timecycle.models.encoder import Trunk

IMAGES = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def computed(path: Path, layout: str | None = None, part: str | None = None) -> Tensor:
    return load_features(path, layout, part)(IMAGES)


def header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as opened:
        return opened.metadata()


def teacher_and_student(weights: dict[str, Tensor]) -> dict:
    other = {name: -value for name, value in weights.items()}
    return {"teacher": prefixed("backbone.", weights), "student": prefixed("module.backbone.", other)}


PUBLISHED: dict[str, tuple[int, Callable, str | None, str | None, int, str]] = {
    "torchvision": (18, lambda weights: weights, None, None, 3, "zeros"),
    "crw": (18, crw, None, None, 3, "reflect"),
    "crw, padding modules": (18, crw_with_padding_modules, None, None, 3, "reflect"),
    "crw-zeropad": (18, crw, "crw-zeropad", None, 3, "zeros"),
    "uvc": (18, uvc, None, None, 4, "zeros"),
    "vfs": (18, vfs, None, None, 3, "zeros"),
    "moco": (50, moco, None, None, 3, "zeros"),
    "simsiam": (18, lambda weights: {"state_dict": prefixed("module.encoder.", weights)}, None, None, 3, "zeros"),
    "teacher": (18, teacher_and_student, None, "teacher", 3, "zeros"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_converted_files_give_the_features_of_the_checkpoint(name, tmp_path):
    depth, layout, said, part, stages, padding = PUBLISHED[name]
    weights = random_weights(depth)
    source = tmp_path / "v1.5.pth.tar"
    torch.save(layout(weights), source)
    expected = computed(source, said, part)
    ours, standard = convert(source, tmp_path / "out", said, part)
    assert [ours.name, standard.name] == ["v1.5.safetensors", f"v1.5-resnet{depth}.safetensors"]
    assert torch.equal(computed(ours), expected)
    assert torch.equal(computed(standard), expected)
    # The standard file against an independent forward pass, as its header describes it.
    notes = header(standard)
    assert (notes["padding"], notes["width"], notes["source"]) == (padding, "64", "v1.5.pth.tar")
    assert notes["strides"] == ", ".join(f"layer{i} {s}" for i, s in enumerate((1, 2, 1, 1)[:stages], start=1))
    stored = safetensors.torch.load_file(standard)
    wanted = features(stored, IMAGES, (1, 2, 1, 1)[:stages], {"zeros": "constant"}.get(padding, padding))
    torch.testing.assert_close(expected, wanted, atol=1e-4 * wanted.max().item(), rtol=0)
    assert set(weights) - {"fc.weight", "fc.bias"} <= set(stored) <= set(weights)
    assert all(torch.equal(stored[each], weights[each]) for each in stored)
    # A converted file is converted to the same.
    again, _ = convert(str(ours), str(tmp_path / "again"))
    assert torch.equal(computed(again), expected)
    for path in (source, ours, standard, *again.parent.iterdir()):
        path.unlink()


def released(weights: dict[str, Tensor], head: Tensor) -> dict:
    """TimeCycle's release: 3-D convolutions of one frame, in DataParallel, with layer4 and other heads."""
    state = {f"module.encoderVideo.{name}": x[:, :, None] if x.ndim == 4 else x for name, x in weights.items()}
    others = {"module.afterconv3_trans.weight": torch.randn(128, 900, 4, 4), "module.linear2.bias": torch.zeros(3)}
    return {"epoch": 14, "state_dict": state | {"module.afterconv1.weight": head[:, :, None, None, None]} | others}


def test_the_releases_standard_resnet_gives_its_features_at_stride_8(tmp_path):
    weights = {name: x for name, x in random_weights(50).items() if not name.startswith("fc.")}
    head = torch.randn(512, 1024, generator=torch.Generator().manual_seed(2)) / 32
    source = tmp_path / "checkpoint_14.pth.tar"
    torch.save(released(weights, head), source)
    expected = computed(source)
    ours, standard = convert(source, tmp_path)
    assert torch.equal(computed(ours), expected)
    stored = safetensors.torch.load_file(standard)
    assert header(standard)["strides"] == "layer1 1, layer2 2, layer3 1"
    assert stored.keys() == weights.keys()  # layer4 too
    assert all(torch.equal(value, weights[name]) for name, value in stored.items())
    # The forward pass of a plain ResNet-50, then the release's head, ReLU and L2.
    trunk = features(stored, IMAGES, (1, 2, 1))
    found = functional.normalize(torch.einsum("bchw,dc->bdhw", trunk, head).relu(), dim=1)
    assert found.shape == (1, 512, 5, 6)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # The strides of torchvision, which the release's own conversion leaves, give other features on a coarser grid.
    coarse = features(stored, IMAGES, (1, 2, 2))
    assert coarse.shape == (1, 1024, 3, 3)
    assert (coarse - trunk[:, :, ::2, ::2]).abs().max() > 0.1 * trunk.max()
    for path in (source, ours, standard):
        path.unlink()


@pytest.mark.parametrize(("width", "half"), [(64, False), (12, True)])
def test_a_walks_encoder_is_saved_read_and_converted(width, half, tmp_path):
    torch.manual_seed(0)
    trunk = Trunk(18, 3, "reflect", width)
    trunk(torch.randn(2, 3, 32, 32))  # changes the running statistics
    source = tmp_path / "encoder.safetensors"
    save_encoder(trunk, source, {"steps": "7"}, half)
    assert load_features(source).conv1.weight.dtype == torch.float32
    tolerance = 2e-2 if half else 1e-6
    torch.testing.assert_close(computed(source), trunk.eval()(IMAGES), rtol=tolerance, atol=tolerance)
    ours, standard = convert(source, tmp_path / "out")
    assert torch.equal(computed(ours), computed(source))
    assert torch.equal(computed(standard), computed(source))
    notes = header(standard)
    assert (notes["padding"], notes["width"], notes["steps"]) == ("reflect", str(width), "7")
    assert header(ours)["steps"] == "7"


def test_our_encoder_is_converted(release_checkpoint: Path, tmp_path):
    ours, _ = convert(release_checkpoint, tmp_path)
    again, standard = convert(ours, tmp_path / "again")
    expected = load_encoder(release_checkpoint)
    with torch.inference_mode():
        assert torch.equal(computed(again), expected(IMAGES))
        assert torch.equal(computed(standard), expected.trunk(IMAGES))


def test_stored_values_keep_their_precision_in_the_standard_file(tmp_path):
    weights = {n: x.bfloat16() if x.is_floating_point() else x for n, x in random_weights(18).items()}
    source = tmp_path / "w.pth"
    torch.save({n: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for n, x in weights.items()}, source)
    ours, standard = convert(source, tmp_path)
    stored = safetensors.torch.load_file(standard)
    assert stored.keys() == weights.keys()
    assert all(x.dtype == weights[n].dtype and torch.equal(x, weights[n]) for n, x in stored.items())
    assert torch.equal(computed(ours), computed(source))
    for path in (source, ours, standard):
        path.unlink()


def test_a_checkpoint_is_not_overwritten(tmp_path, command_line):
    torch.manual_seed(0)
    source = tmp_path / "encoder.safetensors"
    save_encoder(Trunk(18, 3, "reflect", 8), source, {"steps": "7"}, half=True)
    before = source.read_bytes()
    ours, standard = convert(source, tmp_path)
    assert ours.samefile(source)
    assert source.read_bytes() == before  # already converted
    assert torch.equal(computed(standard), computed(source))
    torch.save({"teacher": random_weights(18)}, source)
    before = source.read_bytes()
    ended = command_line(main, "convert", source, "--out", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "would be overwritten; expected another folder" in ended.err
    assert source.read_bytes() == before
    source.unlink()


def test_conversion_is_reproducible_and_replaces_only_its_own_files(release_checkpoint: Path, tmp_path):
    files = [convert(release_checkpoint, tmp_path / name) for name in ("a", "b", "b")]
    for first, second in zip(files[0], files[1], strict=True):
        assert first.read_bytes() == second.read_bytes()
    files[0][1].write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{files[0][1]} is there, and was not made from .*checkpoint_14"):
        convert(release_checkpoint, tmp_path / "a")
    assert files[0][1].read_bytes() == b"mine"


def test_edited_weights_are_not_replaced(tmp_path):
    torch.save(random_weights(18), tmp_path / "c.pth")
    for path in convert(tmp_path / "c.pth", tmp_path / "out"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=r"is there, and was not made from .*c.pth, or was changed since"):
            convert(tmp_path / "c.pth", tmp_path / "out")
        path.write_bytes(whole)
    convert(tmp_path / "c.pth", tmp_path / "out")
    (tmp_path / "out" / "c.safetensors").unlink()
    (tmp_path / "out" / "c.safetensors").symlink_to("nothing")
    with pytest.raises(InputError, match=r"c.safetensors is there, and was not made from"):
        convert(tmp_path / "c.pth", tmp_path / "out")


def test_a_flipped_bit_in_converted_weights_is_noticed(tmp_path):
    torch.save(random_weights(18), tmp_path / "c.pth")
    path, _ = convert(tmp_path / "c.pth", tmp_path)
    whole = path.read_bytes()
    for at in (len(whole) // 2, len(whole) - 1, whole.index(b'"layout":"') + 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(InputError, match=r"is damaged or was changed, as it does not fit the timecycle_sha256"):
            load_features(path)
    # Files without the hash are read.
    state = safetensors.torch.load(whole)
    safetensors.torch.save_file(state, path, {"layout": "torchvision"})
    load_features(path)
