"""TimeCycle's checkpoints: read, converted to safetensors and a standard ResNet-50; code in them is not executed."""

import argparse
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.assertions import raises_input_error
from tests.pickle_cases import Call
from tests.resnets import features
from timecycle.checkpoint import main
from timecycle.checkpoints.networks import encoder_state, load_encoder, load_features, read_state_dict
from timecycle.errors import InputError


@torch.inference_mode()
def test_converted_resnet50_computes_the_tested_networks_features(release_checkpoint: Path, tmp_path, command_line):
    ended = command_line(main, "convert", release_checkpoint, "--out", tmp_path)
    assert ended.code == 0
    assert "layer3 stride 1" in ended.out
    standard = safetensors.torch.load_file(tmp_path / "checkpoint_14-resnet50.safetensors")
    assert "layer4.0.conv1.weight" in standard
    assert all(value.ndim != 5 for value in standard.values())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tested = load_encoder(release_checkpoint).trunk(images)
    torch.testing.assert_close(features(standard, images, (1, 2, 1)), tested, atol=1e-5, rtol=1e-5)
    # With the notebook's stride it is another network, on a coarser grid.
    assert features(standard, images, (1, 2, 2)).shape[-1] == tested.shape[-1] // 2


def test_conversion_keeps_the_encoder(release_checkpoint: Path, tmp_path, command_line):
    assert command_line(main, "convert", release_checkpoint, "--out", tmp_path).code == 0
    converted = load_encoder(tmp_path / "checkpoint_14.safetensors").state_dict()
    for name, value in load_encoder(release_checkpoint).state_dict().items():
        assert torch.equal(converted[name], value), name


def test_files_of_pytorch_0_4_are_read(release_checkpoint: Path, tmp_path):
    state = {k: v for k, v in read_state_dict(release_checkpoint).items() if not k.endswith("num_batches_tracked")}
    old = tmp_path / "old.pth.tar"
    torch.save({"epoch": 14, "state_dict": state}, old, _use_new_zipfile_serialization=False)
    loaded = load_encoder(old).state_dict()
    assert torch.equal(loaded["head.weight"], encoder_state(state)["head.weight"])


def test_every_name_of_the_release_is_known(oracle_checkpoint: Path):
    state = read_state_dict(oracle_checkpoint)
    assert len(state) == 323
    assert set(encoder_state(state)) == set(load_encoder(oracle_checkpoint).state_dict())


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = Call(Path.touch, (Path("executed"),))
    for extra in (bomb, argparse.Namespace(model_type=bomb)):
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": extra}, "bomb.pth.tar")
        for read in (read_state_dict, load_features):
            with raises_input_error(match=r"bomb\.pth\.tar is not a file of plain tensors \(it names \S+\)"):
                read(Path("bomb.pth.tar"))
    Path("plain.pth").write_bytes(pickle.dumps({"a": 1, "b": bomb}))
    with pytest.raises(InputError):
        read_state_dict(Path("plain.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "cannot be read"),
        (b"not a checkpoint at all", "plain tensors"),
        ({"epoch": 3}, "holds no tensors"),
        ({"state_dict": [1, 2]}, "holds no tensors"),
        (torch.zeros(2), "holds no tensors"),
    ],
    ids=["missing", "empty", "text", "no state", "list", "tensor"],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "weights.pth.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with raises_input_error(str(path), match=said):
        read_state_dict(path)


def test_missing_and_misshapen_tensors_are_all_listed(release_checkpoint: Path, tmp_path):
    state = read_state_dict(release_checkpoint)
    del state["module.encoderVideo.bn1.bias"], state["module.encoderVideo.layer3.5.conv3.weight"]
    state["module.afterconv1.weight"] = torch.zeros(256, 1024, 1, 1, 1)
    path = tmp_path / "holes.pth.tar"
    torch.save({"state_dict": state}, path)
    named = ("trunk.bn1.bias", "trunk.layer3.5.conv3.weight", "head.weight [256, 1024, 1, 1] instead of")
    with raises_input_error(*named):
        load_encoder(path)


def test_bad_checkpoint_ends_with_status_2(tmp_path, command_line):
    ended = command_line(main, "convert", tmp_path / "nothing.pth.tar")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith("error: ")
