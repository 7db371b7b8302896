"""Outputs of feature extractors: all accepted forms are read alike, others are refused."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from tests.test_extractors import CPU, images
from timecycle.errors import InputError
from timecycle.features.extractors import CallableExtractor, evaluating
from timecycle.features.maps import Form, as_maps, fits, token_grids

MAPS = torch.rand(1, 12, 8, 12, generator=torch.Generator().manual_seed(2))
TOKENS = MAPS.flatten(2).transpose(1, 2)
BEHIND = {prefix: torch.cat([torch.full((1, prefix, 12), 99.0), TOKENS], dim=1) for prefix in range(6)}
Output = namedtuple("Output", ["last_hidden_state", "pooler_output"])
ANSWERS = {
    "maps": MAPS,
    "requiring grad": MAPS.clone().requires_grad_() * 1,
    "float64": MAPS.double(),
    "NumPy": MAPS.numpy(),
    "NumPy float64": MAPS.double().numpy(),
    "NumPy, the other byte order": MAPS.numpy().astype(">f4"),
    "tuple of one": (MAPS,),
    "list of a map": [MAPS[0]],
    "tuple of a NumPy map": (MAPS[0].numpy(),),
    "dictionary of one": {"anything": MAPS},
    "tuple of a dictionary": ({"anything": MAPS},),
    "DINOv2's": {"x_norm_clstoken": TOKENS[:, 0], "x_norm_patchtokens": TOKENS, "masks": None},
    "transformers'": {"last_hidden_state": BEHIND[1], "pooler_output": TOKENS[:, 0]},
    "named tuple": Output(BEHIND[5], TOKENS[:, 0]),
    "torchvision's": {"out": MAPS, "aux": MAPS[:, :3]},
    "channels last": MAPS.permute(0, 2, 3, 1),
    "channels last NumPy": MAPS.permute(0, 2, 3, 1).numpy(),
    **{f"tokens behind {prefix}": tokens for prefix, tokens in BEHIND.items()},
    "NumPy tokens": BEHIND[1].numpy(),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_accepted_form_gives_the_same_maps(kind):
    found = CallableExtractor(lambda _: ANSWERS[kind], CPU)(images())
    assert not found.requires_grad
    assert torch.equal(found.float(), MAPS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_keep_their_dtype_unless_one_is_asked_for(dtype):
    found = CallableExtractor(lambda _: MAPS.to(dtype), CPU)(images())
    assert found.dtype == dtype
    assert torch.equal(found, MAPS.to(dtype))
    with evaluating(lambda _: MAPS.to(dtype), None, "bfloat16") as features:
        assert torch.equal(features(images()), MAPS.to(dtype).bfloat16())
    with pytest.raises(InputError, match="dtype is int8; expected one of float16, bfloat16, float32"):
        evaluating(lambda _: MAPS, None, torch.int8).__enter__()


@pytest.mark.parametrize(
    ("shape", "size", "form"),
    [
        ((1, 384, 60, 104), (480, 832), Form("maps")),
        ((1, 60, 104, 384), (480, 832), Form("channels last")),
        ((1, 768, 34, 61), (480, 854), Form("maps")),
        ((1, 34, 61, 768), (480, 854), Form("channels last")),
        ((1, 16, 37, 37), (518, 518), Form("maps")),
        ((1, 37, 37, 37), (518, 518), Form("maps")),  # ambiguous: channels first, as documented
        ((1, 512, 11, 23), (480, 854), Form("maps")),  # without padding
        ((1, 768, 14, 14), (480, 854), Form("maps")),  # of a model that resizes its images to squares
        ((1, 3, 960, 1664), (480, 832), Form("maps")),
        ((1, 6241, 384), (480, 832), Form("tokens", 1)),
        ((1, 1369, 384), (518, 518), Form("tokens", 0)),
        ((1, 1374, 1024), (518, 518), Form("tokens", 5)),
        ((1, 1025, 1024), (448, 448), Form("tokens", 1)),
        ((1, 2074, 768), (480, 854), Form("tokens", 0)),  # 34 x 61 patches of 14 pixels, the rest cropped
        ((1, 2136, 768), (480, 854), Form("tokens", 1)),  # 35 x 61, padded
    ],
)
def test_the_form_is_detected_from_the_shape(shape, size, form):
    maps, read = as_maps(torch.zeros(shape), (1, 3, *size))
    assert read == form
    if form.layout == "maps":
        assert maps.shape == shape
    elif form.layout == "channels last":
        assert maps.shape == (1, shape[3], shape[1], shape[2])
    else:
        assert maps.shape[:2] == (1, shape[2])
        assert maps.shape[2] * maps.shape[3] + form.prefix == shape[1]
        assert fits((maps.shape[2], maps.shape[3]), size)


def test_tokens_that_fit_two_grids_are_refused():
    assert token_grids(13, (64, 48)) == {(1, 4, 3)}
    assert len(token_grids(6, (32, 48))) > 1
    with pytest.raises(
        InputError,
        match=r"returned torch.float32 \[1, 6, 8\] for .*; expected .* tokens \[1, N, D\] where N .*24 at 8",
    ):
        as_maps(torch.zeros(1, 6, 8), (1, 3, 32, 48))


def test_later_outputs_must_have_the_form_of_the_first():
    answers = iter([MAPS, MAPS.permute(0, 2, 3, 1)])
    features = CallableExtractor(lambda _: next(answers), CPU)
    features(images())
    with pytest.raises(InputError, match=r"expected \[B, D, h, w\], like its earlier outputs, not \[B, h, w, D\]"):
        features(images())
    last = iter([MAPS.permute(0, 2, 3, 1), torch.rand(1, 12, 12, 12), BEHIND[1]])
    features = CallableExtractor(lambda _: next(last), CPU)
    features(images())
    square = features(images(96, 96))  # ambiguous by its shape alone
    assert square.shape == (1, 12, 12, 12)
    assert square.stride()[1] == 1
    with pytest.raises(InputError, match=r"not \[B, N, D\] with 1 tokens"):
        features(images())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (MAPS.long(), "returned torch.int64 [1, 12, 8, 12] for images [1, 3, 64, 96]; expected floating point [1, D,"),
        (MAPS > 0, "returned torch.bool [1, 12, 8, 12]"),
        (MAPS.to(torch.complex64), "returned torch.complex64 [1, 12, 8, 12]"),
        (MAPS.numpy().astype(np.int32), "returned int32 [1, 12, 8, 12]"),
        (MAPS.numpy().astype(object), "returned object [1, 12, 8, 12]"),
        (MAPS * torch.nan, "features holds nan at [0, 0, 0, 0]; expected finite features"),
        (MAPS.numpy() * np.inf, "features holds inf at [0, 0, 0, 0]; expected finite features"),
        (torch.cat([MAPS, MAPS]), "returned torch.float32 [2, 12, 8, 12] for images [1, 3, 64, 96]; expected"),
        (MAPS[0], "returned torch.float32 [12, 8, 12] for images"),
        (MAPS[0, 0], "returned torch.float32 [8, 12] for images"),
        ((MAPS, MAPS), "returned tuple for images"),
        ([], "returned list for images"),
        ({}, "returned empty dict for images"),
        ({"a": MAPS, "b": MAPS}, "returned dict of a, b for images"),
        ({"out": MAPS, "last_hidden_state": TOKENS}, "returned dict of out, last_hidden_state for images"),
        (None, "returned NoneType for images"),
        (3.0, "returned float for images"),
        (MAPS.to_sparse(), "returned torch.float32 [1, 12, 8, 12] (torch.sparse_coo, cpu) for images"),
        (MAPS.mean((2, 3), keepdim=True), "[1, 12, 1, 1] for images [1, 3, 64, 96]; expected a grid of more than one"),
        (MAPS[:, :0], "returned torch.float32 [1, 0, 8, 12] for"),
        (MAPS[:, :, :0], "returned torch.float32 [1, 12, 0, 12] for"),
        (torch.rand(1, 77, 16), "returned torch.float32 [1, 77, 16] for images [1, 3, 64, 96]; expected floating"),
        (torch.rand(1, 14, 14, 700), "[1, 14, 14, 700] for images [1, 3, 64, 96]; expected floating point [1, D, h,"),
    ],
)
def test_other_outputs_are_refused(answer, sentence):
    features = CallableExtractor(lambda _: answer, CPU)
    with raises_input_error(sentence):
        features(images())
    features.frame = Path("clip/00003.jpg")
    with pytest.raises(InputError, match=r"^clip/00003.jpg: "):
        features(images())
