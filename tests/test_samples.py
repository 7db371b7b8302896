"""What training looks at: the original's draws number by number, and its three accidents corrected."""

import json
import random

import numpy as np
import pytest

from timecycle.data.clips import listed_clips
from timecycle.data.samples import CycleSamples, Generators


@pytest.fixture(scope="session")
def recorded(oracle):
    return json.loads((oracle / "vlog_samples.json").read_text())["records"]


@pytest.fixture(scope="session")
def dogs(shared, tmp_path_factory):
    """The sequence `dog` as TimeCycle's list has it, whole and its first 13 frames."""
    root = tmp_path_factory.mktemp("dogs")
    pictures = sorted((shared / "davis" / "JPEGImages" / "480p" / "dog").glob("*.jpg"))
    for name, count in (("dog", 60), ("dogshort", 13)):
        (root / name).mkdir()
        for i, picture in enumerate(pictures[:count], 1):
            (root / name / f"{i:06d}.jpg").symlink_to(picture)
    (root / "list.txt").write_text("dog/ 60\ndogshort/ 13\n")
    return dict(zip(("dog", "dogshort"), listed_clips(root / "list.txt"), strict=True))


def original(clip, seed):
    generators = Generators(random.Random(seed), np.random.RandomState(seed))
    return CycleSamples([clip], 0, original=True).draw(clip, generators)


def test_the_originals_draws(recorded, dogs):
    for record in recorded:
        found = original(dogs[record["clip"]], record["seed"])
        assert int(found["first"]) == record["meta"]["startframe"]
        np.testing.assert_allclose(found["theta"], record["theta"], rtol=0, atol=1e-7)
        np.testing.assert_allclose(found["frames"][..., ::80, ::80], record["imgs_probe"], rtol=0, atol=1e-6)
        patch = np.array(record["patch_probe"]).reshape(3, 3, 3)
        np.testing.assert_allclose(found["patch"][..., ::27, ::27], patch, rtol=0, atol=1e-5)
        for name, total in zip(("frames", "target", "patch"), record["sums"], strict=True):
            assert float(found[name].double().sum()) == pytest.approx(total, abs=1e-3)
