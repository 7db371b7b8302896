"""TimeCycle's label propagation: the original's recorded maps and masks, and rules beyond the record."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

import test_davis
from timecycle.checkpoints.networks import load_encoder
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.models.encoder import Encoder, fold_batch_norm
from timecycle.ops import Select, topk_affinity
from timecycle.propagation.frames import preprocess
from timecycle.propagation.labels import SoftLabels, index_mask, min_max, soft_labels
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import protocol

TIMECYCLE = protocol("timecycle")
SELECT = TIMECYCLE.select()
RECORDED = [("dog", 320), ("blackswan", 320), ("dog", 480)]
ENCODED = 13  # frames of a recorded sequence that are encoded here: up to the last one with recorded neighbors
MASK_NOISE = {320: 20, 480: 30}  # pixels of a frame that differ by rounding in float32


def labels_of(mask: np.ndarray, crop: int) -> SoftLabels:
    return soft_labels(mask, TIMECYCLE, (crop // 8, crop // 8), (crop, crop))


def masks_of(soft: torch.Tensor, ids: tuple[int, ...], crop: int, size: tuple[int, int]) -> list[np.ndarray]:
    """At the size of the crop, and of the frame."""
    return [index_mask(soft, ids, TIMECYCLE, (crop, crop), output) for output in ((crop, crop), size)]


def first_mask(shared: Path, sequence: str) -> np.ndarray:
    return read_mask(shared / "davis" / "Annotations" / "480p" / sequence / "00000.png")


@dataclass
class Evaluated:
    """A run of test_davis.py on the recorded sequence "dog": its folder, and features and soft labels of 30 frames."""

    folder: Path
    features: list[torch.Tensor]
    soft: list[torch.Tensor]


@pytest.fixture(scope="module")
def evaluated(shared: Path, oracle_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Run test_davis.py at crop 320."""
    root, name = tmp_path_factory.mktemp("originals"), "dog"
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text(name)
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (root / kind / "480p" / name).mkdir(parents=True)
        for i in range(30):
            path = Path(kind) / "480p" / name / f"{i:05d}.{ending}"
            (root / path).symlink_to(shared / "davis" / path)
    found = Evaluated(root / "out", [], [])

    def keep(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if isinstance(module, Encoder):
            found.features.extend(output.clone())

    def kept(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*arguments: object, **options: object) -> torch.Tensor:
            found.soft.append(step(*arguments, **options))
            return found.soft[-1].clone()

        return run

    words = ["--davis", root, "--resume", oracle_checkpoint, "--save_path", found.folder]
    hook = register_module_forward_hook(keep)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["test_davis.py", *map(str, words)])
            patch.setattr(LabelPropagator, "start", kept(LabelPropagator.start))
            patch.setattr(LabelPropagator, "step", kept(LabelPropagator.step))
            test_davis.main()
    finally:
        hook.remove()
    return found


def test_scores_and_masks_equal_the_originals(evaluated, oracle: Path):
    results = json.loads((evaluated.folder / "results.json").read_text())
    recorded = json.loads((oracle / "infer.json").read_text())["scores"]["320, 30 frames"]["dog"]
    scores = results["scores"]["sequences"]["dog"]["1"]
    assert scores["J_mean"] == pytest.approx(recorded["J_mean"], abs=5e-4)
    assert scores["F_mean"] == pytest.approx(recorded["F_mean"], abs=5e-4)
    masks = [read_mask(path) for path in sorted((evaluated.folder / "dog").glob("*.png"))]
    for i, mask in enumerate(masks[1:], start=1):
        assert np.count_nonzero(mask != read_mask(oracle / "masks_320" / "dog" / f"{i:05d}.png")) <= 80


@pytest.fixture(scope="module")
def propagated(shared: Path, oracle: Path, oracle_checkpoint: Path, evaluated: Evaluated):
    """Recorded results by sequence and crop, features and soft labels: of the program's run, else made here; cached."""
    encoder = fold_batch_norm(load_encoder(oracle_checkpoint))

    @functools.cache
    @torch.inference_mode()
    def get(sequence: str, crop: int):
        recorded = np.load(oracle / f"infer_{sequence}_{crop}.npz")
        if (sequence, crop) == ("dog", 320):
            assert len(evaluated.features) == len(recorded["idx_crop"])
            return recorded, evaluated.features, evaluated.soft
        frames = sorted((shared / "davis" / "JPEGImages" / "480p" / sequence).glob("*.jpg"))
        rules = protocol(TIMECYCLE, side=crop)
        images = (preprocess(read_rgb(path), rules) for path in frames[: min(ENCODED, len(recorded["idx_crop"]))])
        features = [encoder(image[None])[0] for image in images]
        labels = labels_of(first_mask(shared, sequence), crop)
        propagator = LabelPropagator(TIMECYCLE, l2=False)  # the encoder's features are of length 1
        soft = [propagator.start(features[0], torch.from_numpy(labels.soft)), *map(propagator.step, features[1:])]
        return recorded, features, soft

    return get


@pytest.mark.parametrize(("sequence", "crop"), RECORDED)
def test_maps_and_masks_equal_the_originals(propagated, shared: Path, oracle: Path, sequence, crop):
    recorded, features, propagated_labels = propagated(sequence, crop)
    annotation = first_mask(shared, sequence)
    labels = labels_of(annotation, crop)
    np.testing.assert_array_equal(labels.soft.transpose(1, 2, 0), recorded["label0"])
    assert len(propagated_labels) == len(features)
    errors = []
    for i, soft in enumerate(propagated_labels):
        errors.append(np.abs(soft.numpy().transpose(1, 2, 0) - recorded["pred_norm"][i]).mean())
        at_crop, at_size = masks_of(soft, labels.ids, crop, annotation.shape)
        assert np.count_nonzero(at_crop != recorded["idx_crop"][i]) <= MASK_NOISE[crop], i
        if i > 0:
            final = read_mask(oracle / f"masks_{crop}" / sequence / f"{i:05d}.png")
            assert np.count_nonzero(at_size != final) <= 80, i
    assert np.mean(errors) < 1e-5


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("sequence", "crop"), RECORDED)
def test_selected_values_equal_the_originals(propagated, sequence, crop, backend):
    recorded, features, _ = propagated(sequence, crop)
    grid = crop // 8
    bank = torch.stack(features).flatten(2).transpose(1, 2)
    checked = [int(name.rsplit("_", 1)[1]) for name in recorded.files if name.startswith("topk_idx_")]
    for i in checked if backend is None else checked[-1:]:
        # Padded positions i + 1 .. i + 7 behind the anchor; the first eight are all frame 0.
        frames = torch.tensor([[0, *(max(0, p - 8) for p in range(i + 1, i + 8))]])
        weights, indices = topk_affinity(bank[i : i + 1], bank, frames, SELECT, backend=backend)
        values = recorded[f"topk_val_{i}"].reshape(8, 6, -1).transpose(2, 0, 1)
        np.testing.assert_allclose(weights[0].view(-1, 8, 5) * 8, values[:, :, :5], atol=1e-5)
        # The record's index is x * S + y, and its frames are counted by slot.
        keys = (indices[0].view(-1, 8, 5) % grid**2).numpy()
        ours = np.sort(keys % grid * grid + keys // grid, axis=2)
        theirs = np.sort(recorded[f"topk_idx_{i}"].reshape(8, 6, -1).transpose(2, 0, 1)[:, :, :5], axis=2)
        clear = values[:, :, 4] - values[:, :, 5] > 1e-4
        assert clear.any()
        np.testing.assert_array_equal(ours[clear], theirs[clear])


def direct_timecycle(features, labels, context, select):
    """The protocol by its definition: each frame is predicted from the padded list of frames, all stored."""
    padded = [features[0]] * context + list(features)
    soft = [labels] * context
    for i in range(len(features)):
        slots = [0, *range(i + 1, i + context)]
        bank = torch.stack([padded[p].flatten(1).T for p in slots])
        query = padded[i + context].flatten(1).T[None]
        weights, indices = topk_affinity(query, bank, torch.arange(context)[None], select, backend="reference")
        out = torch.zeros_like(labels.flatten(1))
        for n in range(out.shape[1]):
            for weight, index in zip(weights[0, n], indices[0, n].tolist(), strict=True):
                out[:, n] += weight * soft[slots[index // out.shape[1]]].flatten(1)[:, index % out.shape[1]]
        soft.append(min_max(out.view_as(labels)))
    return soft[context:]


@pytest.mark.parametrize("context", [1, 2, 3, 8, 40])
def test_the_propagator_equals_the_padded_sequence(context):
    generator = torch.Generator().manual_seed(context)
    features = torch.nn.functional.normalize(torch.rand(7, 6, 4, 5, generator=generator), dim=1)
    labels = torch.rand(3, 4, 5, generator=generator)
    select = Select(2, 0.1, scope="frame", softmax_over="all")
    expected = direct_timecycle(features, labels, context, select)
    propagator = LabelPropagator("timecycle", length=context, k=2, temperature=0.1)
    for i, feature in enumerate(features):
        soft = propagator.start(feature, labels) if i == 0 else propagator.step(feature)
        torch.testing.assert_close(soft, expected[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ties", ["exact", "all"])
@pytest.mark.parametrize("softmax_over", ["all", "topk"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_a_padded_context_of_one_scope_counts_every_copy(softmax_over, ties, k):
    """The result is that of one slot for each copy of frame 0; whole-number features tie."""
    generator = torch.Generator().manual_seed(k)
    features = torch.randint(-2, 3, (5, 6, 4, 5), generator=generator).float()
    labels = torch.rand(3, 4, 5, generator=generator)
    rules = protocol(
        "timecycle", length=40, scope="joint", softmax_over=softmax_over, ties=ties, k=k, l2=False, temperature=4.0,
        feedback="soft",
    )  # fmt: skip
    propagator = LabelPropagator(rules)
    found = [propagator.start(features[0], labels), *(propagator.step(feature) for feature in features[1:])]
    rows, known = features.flatten(2).transpose(1, 2), [labels]
    for t in range(5):
        slots = [max(0, p - 39) for p in (0, *range(t + 1, t + 40))]  # of padded labels: 0 the annotation
        frames = torch.tensor([[max(0, slot - 1) for slot in slots]])
        weights, indices = topk_affinity(rows[t : t + 1], rows, frames, rules.select(), backend="reference")
        maps = torch.stack(known)[torch.tensor(slots)].flatten(2).transpose(1, 2).flatten(0, 1)
        kept = (indices[0] >= 0)[:, :, None] * weights[0, :, :, None] * maps[indices[0].clamp(min=0)]
        known.append(kept.sum(1).T.view_as(labels))
        torch.testing.assert_close(found[t], known[-1], atol=1e-5, rtol=1e-5)


def test_a_constant_class_becomes_zero_and_stays_finite():
    labels = torch.stack([torch.full((3, 3), 0.4), torch.arange(9.0).view(3, 3)])
    scaled = min_max(labels)
    assert torch.equal(scaled[0], torch.zeros(3, 3))
    assert torch.equal(scaled[1], torch.arange(9.0).view(3, 3) / 8)


def blank(side: int = 80) -> np.ndarray:
    return np.zeros((side, side), np.uint8)


def test_classes_are_background_then_first_appearance_in_raster_order():
    mask = blank()
    mask[40:60, 10:30] = 2
    mask[10:30, 50:70] = 7
    mask[11:30, 5:20] = 3
    assert labels_of(mask, 80).ids == (0, 7, 3, 2)


@pytest.mark.parametrize(("pixels", "kept"), [(11, False), (12, True)])
def test_an_object_needs_twelve_pixels(pixels, kept):
    mask = blank()
    mask[43, 10 : 10 + pixels] = 1
    labels = labels_of(mask, 80)
    assert (1 in labels.ids) == kept
    # Pixels of a dropped class belong to no class, not to the background.
    assert labels.soft[0].min() < 1


@pytest.mark.parametrize(("pixels", "kept"), [(10, False), (11, True)])
def test_background_needs_eleven_pixels(pixels, kept):
    mask = np.ones((80, 80), np.uint8)
    mask[0, :pixels] = 0
    assert (0 in labels_of(mask, 80).ids) == kept


def test_void_in_the_first_mask_is_background():
    mask = blank()
    mask[20:40] = 1
    voided = mask.copy()
    voided[60:] = 255
    np.testing.assert_array_equal(labels_of(voided, 80).soft, labels_of(mask, 80).soft)


def test_soft_labels_are_the_mean_of_the_four_central_pixels():
    mask = blank()
    mask[3, 3] = mask[4, 4] = 1
    mask[40:60, 40:60] = 1
    labels = labels_of(mask, 80)
    assert labels.soft[1][0, 0] == 0.5
    assert labels.soft[0][0, 0] == 0.5


def test_annotation_is_resized_by_center_sampled_nearest():
    mask = np.random.default_rng(0).integers(0, 2, (53, 97)).astype(np.uint8)
    rows = ((np.arange(40) + 0.5) * 53 / 40).astype(int)
    columns = ((np.arange(40) + 0.5) * 97 / 40).astype(int)
    expected = mask[rows][:, columns]
    np.testing.assert_array_equal(np.array(Image.fromarray(mask).resize((40, 40), Image.Resampling.NEAREST)), expected)
    soft = labels_of(mask, 40).soft[1]
    center = expected.reshape(5, 8, 5, 8)[:, 3:5, :, 3:5].mean(axis=(1, 3))
    np.testing.assert_allclose(soft, center, atol=1e-6)


def test_masks_hold_ids_and_ties_go_to_the_earlier_class():
    soft = np.zeros((3, 5, 5), np.float32)
    soft[1, :2] = 1
    soft[2, :2] = 1
    at_crop, at_size = masks_of(torch.from_numpy(soft), (0, 9, 4), 40, (17, 31))
    assert at_size.shape == (17, 31)
    assert set(np.unique(at_crop)) == {0, 9}


def test_output_is_resized_by_top_left_nearest():
    soft = np.random.default_rng(0).random((2, 5, 5), np.float32)
    at_crop, at_size = masks_of(torch.from_numpy(soft), (0, 1), 40, (27, 61))
    expected = at_crop[(np.arange(27) * 40 / 27).astype(int)][:, (np.arange(61) * 40 / 61).astype(int)]
    np.testing.assert_array_equal(at_size, expected)


def test_no_class_at_all_gives_background():
    at_crop, at_size = masks_of(torch.zeros(0, 5, 5), (), 40, (17, 31))
    assert not at_crop.any()
    assert not at_size.any()
