"""Every published protocol: the recorded results of the original programs, and rules that the record does not show."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from timecycle.errors import InputError
from timecycle.ops import topk_affinity
from timecycle.propagation.frames import image_size, preprocess
from timecycle.propagation.labels import index_mask, sharpened, soft_labels, upsampled
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS, Protocol, protocol
from timecycle.propagation.video import propagate

RECORDED = [
    f"{protocol}_{data}"
    for protocol in ("crw", "vfs", "dino", "dinov3", "uvc")
    for data in ("random_a", "random_a_short", "vanish_a", "dog", "horsejump-high")
] + ["dift_random_a", "dift_random_a_short"]


@pytest.mark.parametrize("name", RECORDED)
def test_maps_and_masks_equal_the_originals(shared: Path, name):
    folder = shared / "oracle" / "propagation"
    recorded = np.load(folder / f"{name}.npz")
    rules = json.loads(str(recorded["params"]))
    inputs = np.load(folder / rules["input"])
    # Only what a "_short" record was made with differs from the preset.
    overrides = {"length": rules["n_context"], "radius": rules["radius"]} if name.endswith("_short") else {}
    features = torch.from_numpy(inputs["features"].astype(np.float32))
    found = propagate(features, inputs["first_label"], rules["protocol"], **overrides)
    np.testing.assert_allclose(found.soft.numpy(), recorded["soft"], atol=1e-4, rtol=0)
    clear = ~np.unpackbits(recorded["ambiguous"], axis=-1)[..., : found.masks.shape[2]].astype(bool)
    assert (found.masks == recorded["hard"])[clear].all()
    assert (found.masks == recorded["hard"]).mean() > 0.9995


def test_presets_hold_the_published_numbers():
    """The table of the published code, read once more from the papers' side: (L, radius, shape, k, temperature)."""
    table = {
        "timecycle": (8, None, 5, 512**-0.5),
        "uvc": (7, None, 5, 1.0),
        "crw": (20, 12, 10, 0.05),
        "vfs": (20, 12, 10, 0.07),
        "dino": (7, 12, 5, 0.1),
        "dift": (28, 15, 15, 0.2),
        "dinov3": (7, 12, 5, 0.2),
        "sfc": (20, 15, 15, 0.1),
        "dul": (20, 12, 10, 0.05),
        "cropmae": (20, 20, 7, 0.7),
        "rsp": (30, 30, 7, 0.1),
    }
    published = {name: preset for name, preset in PRESETS.items() if name != "best"}  # ours
    assert {name: (p.length, p.radius, p.k, p.temperature) for name, p in published.items()} == table
    assert {(p.sharpen, p.refine, p.islands) for p in published.values()} == {(1.0, None, None)}
    assert json.loads(json.dumps(asdict(PRESETS["dino"])))["shape"] == "square<="


def context(rules: Protocol, t: int) -> list[tuple[int, int, int]]:
    """An independent definition of a target's context: frames in order, multiplicity inside and outside."""
    free = int(rules.radius is None)
    if rules.first == "copies":
        slots = [max(0, i) for i in range(t - rules.length, t)]
        everywhere = int(rules.first_everywhere)
        return [(f, slots.count(f) + (f == 0), (f == 0) * everywhere if not free else slots.count(f) + (f == 0))
                for f in sorted({0, *slots})]  # fmt: skip
    start = 0 if rules.first == "twice" else 1
    slots = [0, *range(max(start, t - rules.length), t)]
    return [(f, slots.count(f), free * slots.count(f)) for f in sorted(set(slots))]


def direct(features: Tensor, labels: Tensor, rules: Protocol) -> Tensor:
    """Soft labels [F, L, h, w] with every frame kept, by the reference operator."""
    _, _, height, width = features.shape
    bank = features.flatten(2).transpose(1, 2)
    bank = torch.nn.functional.normalize(bank, dim=2) if rules.l2 else bank
    soft = [labels]
    for t in range(1, len(features)):
        frames, within, beyond = zip(*context(rules, t), strict=True)
        weights, indices = topk_affinity(
            bank[t : t + 1],
            bank,
            torch.tensor([frames]),
            rules.select(),
            neighborhood=rules.neighborhood(height, width),
            multiplicity=torch.tensor([within, beyond]).T.contiguous(),
            backend="reference",
        )
        known = torch.stack(soft).flatten(2).transpose(1, 2)
        positions = height * width
        rows = known[torch.tensor(frames)].flatten(0, 1)
        out = (weights[0, :, :, None] * (indices[0] >= 0)[:, :, None] * rows[indices[0].clamp(min=0)]).sum(1)
        soft.append(sharpened(out.T.view_as(labels)[None], rules.sharpen)[0])
        assert positions == out.shape[0]
    return torch.stack(soft)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "timecycle"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_streaming_equals_keeping_every_frame(name, length):
    generator = torch.Generator().manual_seed(length)
    features = torch.rand(8, 6, 4, 5, generator=generator)
    labels = torch.rand(3, 4, 5, generator=generator)
    rules = protocol(name, length=length, radius=None if PRESETS[name].radius is None else 2, k=3)
    propagator = LabelPropagator(rules)
    soft = [propagator.start(features[0], labels), *(propagator.step(feature) for feature in features[1:])]
    torch.testing.assert_close(torch.stack(soft), direct(features, labels, rules), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["timecycle", "crw", "uvc", "dino"])
def test_a_batch_of_videos_equals_each_alone(name):
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(6, 3, 8, 4, 5, generator=generator)  # frames, videos
    labels = torch.rand(3, 2, 4, 5, generator=generator)
    overrides = {"length": 3, "k": 3}
    together = LabelPropagator(name, **overrides)
    found = [together.start(features[0], labels), *(together.step(feature) for feature in features[1:])]
    for video in range(3):
        alone = LabelPropagator(name, **overrides)
        one = [alone.start(features[0, video], labels[video]), *(alone.step(f[video]) for f in features[1:])]
        torch.testing.assert_close(torch.stack(found)[:, video], torch.stack(one), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["timecycle", "crw"])
def test_memory_does_not_grow_with_the_video(name):
    propagator = LabelPropagator(name, length=4, k=1)
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(7, 3, 2, 2, generator=generator)
    propagator.start(features[0], torch.rand(2, 2, 2, generator=generator))
    held = [tensor.data_ptr() for tensor in (propagator._bank, propagator._labels)]
    for i in range(1, 10_000):
        soft = propagator.step(features[i % 7])
    assert [tensor.data_ptr() for tensor in (propagator._bank, propagator._labels)] == held
    assert torch.isfinite(soft).all()


@pytest.mark.parametrize("name", ["timecycle", "vfs"])
def test_a_saved_state_is_resumed(name, tmp_path):
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(9, 5, 3, 4, generator=generator)
    whole = LabelPropagator(name, length=3, k=2)
    expected = [whole.start(features[0], torch.rand(2, 3, 4, generator=generator))]
    for i, feature in enumerate(features[1:], start=1):
        if i == 5:
            torch.save(whole.state_dict(), tmp_path / "state.pt")
        expected.append(whole.step(feature))
    later = LabelPropagator(name, length=3, k=2)
    later.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(5, 9):
        assert torch.equal(later.step(features[i]), expected[i])
    with pytest.raises(InputError, match="expected 'dino' with 7"):
        LabelPropagator("dino").load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize("name", ["timecycle", "crw", "vfs", "dino"])
def test_capacity_is_bounded_by_the_length_of_the_video(name):
    generator = torch.Generator().manual_seed(4)
    features, labels = torch.rand(4, 5, 3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator)
    found = []
    for frames in (None, 4):
        propagator = LabelPropagator(name)
        found.append([propagator.start(features[0], labels, frames), *(propagator.step(f) for f in features[1:])])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert propagator._bank.shape[1] <= 5
    with pytest.raises(InputError, match="once more than start\\(\\) was told: expected 4 frames in all"):
        propagator.step(features[0])


def features_and_mask(frames: int = 3) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    mask = np.zeros((32, 40), np.uint8)
    mask[8:20, 8:24] = 3
    return torch.rand(frames, 6, 4, 5, generator=generator), mask


@pytest.mark.parametrize("name", PRESETS)
def test_masks_hold_ids_of_the_first_mask(name):
    features, mask = features_and_mask()
    mask[:4] = 255  # void is background
    found = propagate(features, mask, name)
    assert found.soft.shape == (3, len(found.ids), 4, 5)
    assert found.soft.dtype == torch.float32
    assert (found.masks.shape, found.masks.dtype) == ((3, 32, 40), np.uint8)
    assert set(np.unique(found.masks[1:])) <= {0, 3}
    if name not in ("crw", "timecycle", "sfc", "dul", "cropmae", "best"):
        np.testing.assert_array_equal(found.masks[0], mask)


@pytest.mark.parametrize(("rule", "ids"), [("grid", (0, 1, 2)), ("full", (0, 1, 2, 3, 4, 5)), ("annotated", (0, 2, 5))])
def test_classes_by_every_rule(rule, ids):
    mask = np.zeros((32, 40), np.uint8)
    mask[8:20, 8:24] = 2
    mask[0, 0] = 5  # lost on the grid
    # The palette's colors, blue first: background, then 2 (green), then 5 (purple).
    assert soft_labels(mask, protocol("dino", classes=rule), (4, 5), (32, 40)).ids == ids


def test_crw_orders_classes_by_color_blue_first():
    mask = np.array([[0, 1, 2, 3, 4]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    # red (128, 0, 0), green (0, 128, 0), olive (128, 128, 0), navy (0, 0, 128)
    assert soft_labels(mask, PRESETS["crw"], (1, 5), (8, 40)).ids == (0, 1, 2, 3, 4)
    mask[mask == 1] = 4  # navy is the largest of all with blue first
    assert soft_labels(mask, PRESETS["crw"], (1, 5), (8, 40)).ids == (0, 2, 3, 4)


def test_labels_on_the_grid_by_every_rule():
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 2, (33, 47)).astype(np.uint8)

    def center(image: np.ndarray, height: int, width: int) -> np.ndarray:
        rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
        return image[rows][:, columns]

    grid, working = (4, 6), (32, 48)
    found = {name: soft_labels(mask, PRESETS[name], grid, working).soft[1] for name in ("dino", "vfs", "dinov3", "crw")}
    np.testing.assert_array_equal(found["dino"], center(mask, *grid))
    np.testing.assert_array_equal(found["vfs"], center(center(mask, *working), *grid))
    np.testing.assert_array_equal(found["dinov3"], center(mask, *grid))
    assert (found["crw"] % 1 > 0).any()  # bilinear, straight from the full size


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", [[0.2, 0.4], [0.3, 0.3], [0.0, 0.0], [-2.0, -1.0]]),
        ("positive", [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [-2.0, -1.0]]),
        ("positive, eps", [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [-2.0, -1.0]]),
        ("any", [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_classes_are_scaled_as_the_protocol_says(scale, expected):
    soft = torch.tensor([[0.2, 0.4], [0.3, 0.3], [0.0, 0.0], [-2.0, -1.0]])[:, None]
    large = upsampled(soft, protocol("dino", scale=scale), (1, 2))
    torch.testing.assert_close(large[:, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_eps_matters_where_the_range_is_as_small():
    soft = torch.tensor([[[0.0, 1e-12]]], dtype=torch.float64)
    found = {s: float(upsampled(soft, protocol("dino", scale=s), (1, 2)).max()) for s in ("positive", "positive, eps")}
    assert found == {"positive": 1.0, "positive, eps": pytest.approx(0.5)}


def test_scaling_comes_after_upsampling():
    # Bilinear upsampling by 4 lowers the peak of a single cell; scaling before it would leave the peak below 1.
    soft = torch.zeros(2, 3, 3)
    soft[1, 1, 1] = 0.5
    assert float(upsampled(soft, PRESETS["dino"], (12, 12))[1].max()) == 1.0
    assert float(upsampled(soft, protocol("dino", scale="none"), (12, 12))[1].max()) < 0.5


def test_working_feature_and_output_sizes_are_independent():
    features, mask = features_and_mask()
    large = propagate(features, mask, "dino", working_size=(28, 35), output_size=(16, 24))
    assert large.masks.shape == (3, 16, 24)
    assert set(np.unique(large.masks[0])) == {0, 3}  # the given mask, resized
    for soft, found in zip(large.soft[1:], large.masks[1:], strict=True):
        scaled = upsampled(soft, PRESETS["dino"], (28, 35)).argmax(0).numpy()
        rows = ((np.arange(16) + 0.5) * 28 / 16).astype(int)
        columns = ((np.arange(24) + 0.5) * 35 / 24).astype(int)
        np.testing.assert_array_equal(found, np.array(large.ids)[scaled[rows][:, columns]])


@pytest.mark.parametrize(
    ("name", "frame", "expected"),
    [
        ("timecycle", (480, 854), (320, 320)),
        ("uvc", (480, 854), (480, 832)),
        ("dino", (480, 910), (480, 896)),
        ("dino", (854, 480), (832, 480)),
        ("dino", (500, 500), (480, 448)),
        ("vfs", (360, 641), (480, 855)),
        ("dift", (480, 854), (480, 832)),
        ("crw", (481, 853), (481, 853)),
        ("vfs", (1080, 1920), (480, 853)),
        ("dinov3", (480, 854), (960, 1712)),
    ],
)
def test_images_have_the_published_sizes(name, frame, expected):
    assert image_size(*frame, PRESETS[name]) == expected


def test_images_are_normalized_as_published():
    rgb = np.full((64, 64, 3), 255, np.uint8)
    white = {name: preprocess(rgb, protocol(name, resize="native"))[:, 0, 0] for name in ("dino", "dift", "uvc", "crw")}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white["crw"], (1 - mean) / std)
    torch.testing.assert_close(white["dino"], (1 - mean) / torch.tensor([0.228, 0.224, 0.225]))
    torch.testing.assert_close(white["dift"], torch.ones(3))
    torch.testing.assert_close(white["uvc"], (255 / 256 - mean) / std)


def test_threshold_protocols_keep_ties_and_exact_ones_do_not():
    features, mask = torch.ones(2, 4, 4, 5), features_and_mask()[1]
    # Everything ties: "all" takes the mean over the neighborhood, "exact" the first two keys.
    kept, exact = (propagate(features, mask, name, k=2).soft[1] for name in ("dino", "vfs"))
    assert len(kept[-1].unique()) == len(exact[-1].unique()) == 1
    assert not torch.equal(kept, exact)


def test_large_features_without_normalization_stay_finite():
    features, mask = features_and_mask()
    found = propagate(features * 100, mask, "uvc")  # dot products of some ten thousands
    assert torch.isfinite(found.soft).all()
    assert float(found.soft[1].sum(0).max()) <= 1 + 1e-5


def test_an_empty_first_mask_is_background_throughout():
    features, _ = features_and_mask()
    for name in PRESETS:
        found = propagate(features, np.zeros((32, 40), np.uint8), name)
        assert not found.masks.any(), name


GOOD, MASK = features_and_mask()
LABELS = torch.rand(2, 4, 5)
NAN = GOOD.clone()
NAN[2, 1, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: propagate(GOOD, MASK, "dyno"), "protocol is 'dyno'; expected 'dino'"),
        (lambda: propagate(GOOD, MASK, "zzz"), "protocol is 'zzz'; expected one of timecycle, uvc, crw"),
        (lambda: propagate(GOOD, MASK, "dino", lenght=3), "'lenght' is no field of a protocol; expected 'length'"),
        (lambda: propagate(GOOD, MASK, "dino", shape="disc"), "shape is 'disc'; expected one of 'circle<', 'circle<='"),
        (lambda: propagate(GOOD, MASK, "dino", k=0), "Select.k is 0; expected at least one neighbor"),
        (lambda: propagate(GOOD, MASK, "dino", length=0), "length is 0; expected at least one context frame"),
        (lambda: propagate(NAN, MASK, "dino"), "features holds nan at [0, 1, 2, 3]; expected finite features"),
        (lambda: propagate(GOOD[0], MASK), "features is torch.float32 [6, 4, 5]; expected floating point [F, D, h, w]"),
        (lambda: propagate(GOOD.long(), MASK), "features is torch.int64 [3, 6, 4, 5]; expected floating point"),
        (lambda: propagate(GOOD, MASK.astype(float)), "mask is float64 [32, 40]; expected integers or bool [H, W] of"),
        (lambda: propagate(GOOD, MASK[None]), "mask is uint8 [1, 32, 40]; expected object ids [H, W], or"),
        (lambda: propagate(GOOD.numpy().astype(int), MASK), "features is int64 [3, 6, 4, 5]; expected floating point"),
        (lambda: propagate(GOOD.to(torch.complex64), MASK), "features is torch.complex64 [3, 6, 4, 5]; expected"),
        (lambda: propagate([GOOD[0], GOOD[1, :, 1:]], MASK), "features is list; expected floating point [F, D, h, w]"),
        (lambda: propagate(GOOD.tolist(), MASK), "or arrays [D, h, w] of one shape, dtype and device"),
        (lambda: propagate([], MASK), "features is list; expected"),
        (lambda: propagate(None, MASK), "features is NoneType; expected"),
        (lambda: propagate(GOOD.to_sparse(), MASK), "(torch.sparse_coo, cpu); expected floating point"),
        (lambda: propagate(GOOD.flatten(2).transpose(1, 2), MASK), "reshape tokens [F, N, D] by features.transpose(1"),
        (lambda: LabelPropagator("crw").step(GOOD[0]), "step() came before start()"),
        (lambda: started(GOOD[0].long()), "features is torch.int64 [6, 4, 5]"),
        (lambda: started(GOOD[0, :0]), "features is torch.float32 [0, 4, 5]"),
        (lambda: started(GOOD[0], [1.0]), "labels is list; expected [L, h, w] or [B, L, h, w]"),
        (lambda: started(GOOD[0], torch.rand(2, 4, 4)), "labels has shape [1, 2, 4, 4]; expected"),
        (lambda: started(GOOD), "features has shape [3, 6, 4, 5] and labels"),
        (lambda: started().step(torch.rand(6, 5, 5)), "features is torch.float32 [6, 5, 5] on cpu; expected like the"),
        (lambda: started().step(GOOD[0].double()), "features is torch.float64 [6, 4, 5] on cpu; expected like the fir"),
    ],
)
def test_bad_input_is_refused(call, sentence):
    with raises_input_error(sentence):
        call()


def started(features: Tensor = GOOD[0], labels: object = LABELS) -> LabelPropagator:
    propagator = LabelPropagator("crw")
    propagator.start(features, labels)
    return propagator


def test_index_mask_maps_classes_to_ids():
    soft = torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]])
    mask = index_mask(soft, (0, 7), protocol("crw"), (8, 16), (8, 16))
    assert set(np.unique(mask)) == {0, 7}
    assert mask[0, 0] == 7


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", math.inf, "a finite number"),
        ("radius", math.inf, "a finite number, or None"),
        ("radius", "x", "a finite number, or None"),
        ("length", True, "a whole number"),
        ("length", 10**30, "at least one context frame"),
        ("side", 1e3, "a whole number"),
        ("side", 10**9, "at most 32768"),
        ("multiple", 0, "at least one pixel"),
        ("k", None, "a whole number"),
        ("mean", (1, 2), "three numbers, one for each of red, green and blue"),
        ("std", (0, 1, 1), "positive numbers"),
        ("l2", 1, "True or False"),
        ("shape", ["circle<"], "one of 'circle<'"),
    ],
)
def test_fields_of_another_type_or_out_of_range_are_refused(field, value, expected):
    with pytest.raises(InputError, match=rf"^{field} is .*; expected .*{re.escape(expected)}"):
        protocol("dino", **{field: value})
