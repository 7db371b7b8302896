"""TimeCycleDataset: the original's random draws, and its three bugs corrected."""

import json
import math
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from timecycle.data import datasets
from timecycle.data.clips import Clip, listed_clips, synthetic_clips
from timecycle.errors import InputError
from timecycle.normalization import IMAGENET
from timecycle.training.loader import DistributedBatchSampler


@pytest.fixture(scope="session")
def recorded(oracle):
    return json.loads((oracle / "vlog_samples.json").read_text())["records"]


@pytest.fixture(scope="session")
def dogs(shared, tmp_path_factory):
    """Clips of the sequence `dog`: all frames, and the first 13."""
    root = tmp_path_factory.mktemp("dogs")
    images = sorted((shared / "davis" / "JPEGImages" / "480p" / "dog").glob("*.jpg"))
    for name, count in (("dog", 60), ("dogshort", 13)):
        (root / name).mkdir()
        for i, image in enumerate(images[:count], 1):
            (root / name / f"{i:06d}.jpg").symlink_to(image)
    (root / "list.txt").write_text("dog/ 60\ndogshort/ 13\n")
    return dict(zip(("dog", "dogshort"), listed_clips(root / "list.txt"), strict=True))


def sample_of(clip, seed, original, **options):
    generators = datasets.Generators(random.Random(seed), np.random.RandomState(seed))
    return datasets.TimeCycleDataset([clip], 0, original=original, **options).sample(clip, generators)


def test_the_originals_samples(recorded, dogs):
    assert {record["clip"] for record in recorded} == set(dogs)
    for record in recorded:
        found = sample_of(dogs[record["clip"]], record["seed"], original=True)
        assert int(found["first"]) == record["meta"]["startframe"]
        np.testing.assert_allclose(found["theta"], record["theta"], rtol=0, atol=1e-7)
        np.testing.assert_allclose(found["frames"][..., ::80, ::80], record["imgs_probe"], rtol=0, atol=1e-6)
        # PyTorch interpolates otherwise on other chips: float32's probes are 5.3e-6 from float64's, the sums 9.2e-4.
        np.testing.assert_allclose(found["patch"][..., ::27, ::27], record["patch_probe"], rtol=0, atol=1.1e-5)
        for name, total, absolute in zip(
            ("frames", "target", "patch"), record["sums"], record["abs_sums"], strict=True
        ):
            assert float(found[name].double().sum()) == pytest.approx(total, abs=2e-3)
            assert float(found[name].double().abs().sum()) == pytest.approx(absolute, abs=2e-3)


def test_the_originals_motion(recorded, dogs):
    for record in recorded:
        (_, flip), *_, (_, scores), (_, best), _ = record["draws"]
        meta, clip = record["meta"], dogs[record["clip"]]
        used, gap = datasets.span(clip.length, 8, 2, original=True)
        assert meta["startframe"] + used - 1 == meta["future_idx"]
        assert float(gap) == meta["frame_gap"]
        partner = datasets.motion_partner(meta["future_idx"], gap, clip.length, original=True)
        frames = clip.read([meta["future_idx"], partner])
        size = datasets.short_side(*frames.shape[1:3], 240)
        images = [
            datasets.cropped(f, size, meta["crop_offset_y"], meta["crop_offset_x"], 240, flip <= 0.5) for f in frames
        ]
        found = datasets.motion_scores(*images)
        np.testing.assert_allclose(found, scores, rtol=1e-9)
        assert np.argsort(found, kind="stable")[-10:].tolist() == best


def test_the_originals_training_input(oracle, dogs):
    with np.load(oracle / "train_real_inputs.npz") as arrays:
        found = sample_of(dogs["dog"], 1, original=True)
        for ours, theirs in (("frames", "imgs"), ("target", "img"), ("patch", "patch"), ("theta", "theta")):
            rounded = arrays[theirs][0].reshape(found[ours].shape).astype(np.float32)  # to half precision
            # The patch's place is recorded to 1e-7 of the image's side, which at an edge is 1e-5 of its values.
            np.testing.assert_allclose(found[ours], rounded, rtol=2**-11, atol=2e-5 if ours == "patch" else 3e-8)


class Spot(Clip):
    """Gray frames, each brighter than the one before, with a changing square left of the middle."""

    def __init__(self, frames=60, size=(256, 256), name="spot"):
        self.name, self.length, self.size = name, frames, size

    length = 0

    def _read(self, indices):
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = index
            image[110:146, 36:72] = 250 - 70 * (index % 3)
        return images


def denormalized(image):
    """Bytes of a normalized image [3, S, S]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    return ((image * std + mean) * 255).round()


def spot_from_patch(sample):
    """How far the patch's middle lies from the spot's along x, as a fraction of the image's side."""
    columns = denormalized(sample["target"])[0].amax(0) > 100
    middle = columns.nonzero().float().mean() / (len(columns) - 1)
    return float((sample["theta"][0, 2] + 1) / 2 - middle)


def numbers(sample):
    """The numbers of a spot clip's frames: of the base frames, and of the target."""
    return [int(denormalized(image)[0, 0, 0]) for image in (*sample["frames"], sample["target"])]


def test_the_patch_covers_the_motion_also_when_mirrored():
    missed = 0
    for seed in range(30):
        assert abs(spot_from_patch(sample_of(Spot(), seed, original=False))) < 0.3
        originally = sample_of(Spot(), seed, original=True)
        mirrored = random.Random(seed).random() <= 0.5
        unseen = numbers(originally)[-1] == 59  # no frame comes after the last to show motion
        assert (abs(spot_from_patch(originally)) > 0.3) == (mirrored or unseen)
        missed += mirrored
    assert 5 < missed < 25


def test_frames_of_a_long_clip():
    for seed in range(20):
        sample = sample_of(Spot(20), seed, original=False, frame_side=63, patch_side=21)
        start = int(sample["first"])
        assert 0 <= start <= 4
        assert numbers(sample) == [start + i for i in (0, 2, 4, 6, 15)]
    assert numbers(sample_of(Spot(16), 0, original=True)) == [0, 2, 4, 6, 15]


@pytest.mark.parametrize(
    ("frames", "spread", "originally"),
    [
        (15, [0, 1, 2, 3, 9], [0, 0, 1, 1, 9]),
        (13, [0, 0, 1, 2, 7], [0, 0, 0, 1, 7]),
        (3, [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]),
    ],
)
def test_frames_of_a_short_clip_are_spread(frames, spread, originally):
    starts = set()
    for seed in range(30):
        sample = sample_of(Spot(frames), seed, original=False, frame_side=63, patch_side=21)
        start = int(sample["first"])
        starts.add(start)
        assert numbers(sample) == [start + i for i in spread]
        assert abs(spot_from_patch(sample)) < 0.3  # motion is found even if the target is the last frame
        sample = sample_of(Spot(frames), seed, original=True, frame_side=63, patch_side=21)
        assert numbers(sample) == [start + i for i in originally]
    assert starts == set(range(frames - 2 * frames // 3 + 1))


def test_motion_is_never_measured_against_the_target_itself():
    for frames in range(3, 40):
        used, gap = datasets.span(frames, 8, 2, original=False)
        for target in range(used - 1, frames):
            partner = datasets.motion_partner(target, gap, frames, original=False)
            assert 0 <= partner < frames
            assert partner != target
    assert datasets.motion_partner(20, gap, 40, original=False) == 22
    assert datasets.motion_partner(38, gap, 40, original=False) == 39
    assert datasets.motion_partner(39, gap, 40, original=False) == 38
    assert datasets.motion_partner(39, gap, 40, original=True) == 39


def jitters(samples, epoch):
    """Angle of every sample's patch, radians."""
    thetas = [samples[epoch, index]["theta"] for index in range(len(samples))]
    return [round(math.atan2(theta[1, 0], theta[0, 0]), 5) for theta in thetas]


def test_no_two_samples_share_their_jitter():
    samples = datasets.TimeCycleDataset([Spot(3)] * 24, seed=5, frame_side=45, patch_side=15)
    angles = jitters(samples, 0) + jitters(samples, 1)
    assert len(set(angles)) == 48
    assert max(map(abs, angles)) <= math.pi / 4
    assert max(angles) > 0.5 > -0.5 > min(angles)
    originally = datasets.TimeCycleDataset([Spot(3)] * 24, seed=5, frame_side=45, patch_side=15, original=True)
    shared = jitters(originally, 0) + jitters(originally, 1)
    assert len(set(shared)) == 2  # 24 samples among 12 workers, whose second epoch repeats their first
    places = [tuple(map(tuple, originally[0, index]["theta"].tolist())) for index in range(24)]
    assert len(set(places)) > 2  # the place is drawn by the other generator


@pytest.mark.parametrize("original", [False, True])
def test_samples_depend_on_epoch_and_index_alone(original):
    clips = synthetic_clips(5, 20, seed=0)
    samples = datasets.TimeCycleDataset(clips, seed=1, frame_side=63, patch_side=21, original=original)
    alone = {(e, i): samples[e, i] for e, i in [(1, 4), (0, 0), (1, 0), (0, 3), (0, 2), (0, 1), (0, 4), (1, 1)]}
    assert not torch.equal(alone[0, 0]["target"], alone[1, 0]["target"])
    other = datasets.TimeCycleDataset(clips, seed=2, frame_side=63, patch_side=21, original=original)
    assert not torch.equal(alone[0, 0]["target"], other[0, 0]["target"])
    batches = DistributedBatchSampler(5, batch=2, seed=0)
    for workers in (0, 2):
        loader = DataLoader(samples, batch_sampler=batches, num_workers=workers)
        for places, batch in zip(batches, islice(loader, 2), strict=False):
            for number, place in enumerate(places):
                for key in ("frames", "target", "theta"):
                    assert torch.equal(batch[key][number], alone[place][key])
                # Workers have one thread; PyTorch's products and interpolation may round differently with several.
                # float32's patches are up to 7.8e-6 from float64's.
                torch.testing.assert_close(batch["patch"][number], alone[place]["patch"], rtol=0, atol=1.6e-5)
                assert batch["name"][number] == alone[place]["name"]


def test_shapes_and_dtypes_of_a_sample():
    sample = datasets.TimeCycleDataset(synthetic_clips(2, 20, 0), 0)[0, 1]
    shapes = {key: list(value.shape) for key, value in sample.items() if isinstance(value, torch.Tensor)}
    expected = {"frames": [4, 3, 240, 240], "target": [3, 240, 240], "patch": [3, 80, 80], "theta": [2, 3]}
    assert shapes == expected
    assert all(sample[key].dtype == torch.float32 for key in expected)
    assert sample["name"].startswith("made-0-0001 from frame ")
    assert sample["skipped"] == ""


class Bad(Clip):
    """A clip that cannot be read."""

    def __init__(self, name):
        self.name = name

    @property
    def length(self):
        """Raise the error of an unreadable clip."""
        raise InputError(f"{self.name} is damaged; expected better")

    def _read(self, indices):
        raise AssertionError


def test_an_unusable_clip_is_replaced_and_reported():
    clips = [Bad("a"), Spot(2, name="b"), Spot(name="c"), Spot(name="d"), Bad("e")]
    samples = datasets.TimeCycleDataset(clips, 0, frame_side=45, patch_side=15)
    replacements, reports = set(), set()
    for epoch in range(20):
        sample = samples[epoch, 0]
        first, *others = sample["skipped"].split("\n")
        assert first == "a: a is damaged; expected better"
        assert set(others) <= {"b: b has 2 frames; expected at least 3", "e: e is damaged; expected better"}
        reports.add(sample["skipped"])
        replacements.add(sample["name"].split()[0])
        again = samples[epoch, 0]
        assert torch.equal(again["frames"], sample["frames"])
        assert (again["name"], again["skipped"]) == (sample["name"], sample["skipped"])
    assert replacements == {"c", "d"}
    assert len(reports) > 2
    assert samples[0, 2]["skipped"] == ""


def test_only_unusable_clips_are_refused():
    samples = datasets.TimeCycleDataset([Bad("a"), Spot(2, name="b")], 0)
    with pytest.raises(InputError, match=r"^none of the 2 clips is of use; b: b has 2 frames; expected at least 3$"):
        samples[0, 1]


@pytest.mark.parametrize(("side", "patch"), [(9, 2), (64, 24), (128, 40), (240, 48), (481, 161)])
@pytest.mark.parametrize("size", [(256, 455), (90, 61), (256, 256)])
def test_other_sizes(side, patch, size):
    height, width = datasets.short_side(*size, side)
    assert min(height, width) == round(side * 16 / 15)
    assert abs(height / width - size[0] / size[1]) < 1 / min(height, width) * max(size) / min(size)
    for seed in range(3):
        sample = sample_of(Spot(17, size), seed, original=False, frame_side=side, patch_side=patch)
        assert sample["frames"].shape == (4, 3, side, side)
        assert sample["patch"].shape == (3, patch, patch)
        assert torch.isfinite(sample["patch"]).all()


def test_the_resized_image_is_the_originals():
    assert datasets.short_side(480, 854, 240) == (256, 455)
    assert datasets.short_side(854, 480, 240) == (455, 256)
    assert datasets.short_side(256, 341, 240) == (256, 341)


def test_scores_are_sums_over_windows_of_three_by_three_cells():
    generator = torch.Generator().manual_seed(0)
    target, partner = torch.rand(2, 3, 50, 50, generator=generator)
    scores = datasets.motion_scores(target, partner)
    for column in range(7):
        for row in range(7):
            x, y = 5 * column, 5 * row
            expected = (target - partner)[:, y : y + 15, x : x + 15].abs().double().sum()
            assert scores[column * 7 + row] == pytest.approx(float(expected))


def test_a_patch_is_the_bilinear_sample_of_its_place():
    ramp = torch.arange(10.0).expand(10, 10)
    image = torch.stack([ramp, ramp.T, ramp + ramp.T])
    theta = torch.tensor([[1 / 3, 0, 2 / 3], [0, 1 / 3, -2 / 3]])  # the top right third
    found = datasets.sampled(image, theta, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor([6.0, 7, 8, 9]))
    torch.testing.assert_close(found[1, :, 0], torch.tensor([0.0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame_side": 8}, "frame_side is 8; expected at least 9"),
        ({"patch_side": 1}, "patch_side is 1; expected at least 2"),
        ({"frame_gap": 0}, "frame_gap is 0; expected at least 1"),
        ({"length": 0}, "length is 0; expected at least 1"),
        ({"pred_distance": 0}, "pred_distance is 0; expected at least 1"),
        ({"seed": -1}, "samples of 1 clips with seed -1; expected at least one clip and a seed of 0 or more"),
        ({"clips": []}, "samples of 0 clips with seed 0; expected at least one clip and a seed of 0 or more"),
    ],
)
def test_numbers_out_of_range_are_named(options, said):
    with pytest.raises(InputError, match=f"^{said}$"):
        datasets.TimeCycleDataset(**{"clips": [Spot()], "seed": 0, **options})
