"""Minutes of training on a CPU: that learning learns (make nightly)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_training import TinyEncoder
from tests.training_runs import log
from timecycle.data.synthetic import make_davis
from timecycle.models.encoder import Trunk
from timecycle.training import objectives
from timecycle.training.objectives import OBJECTIVES, validate
from timecycle.training.settings import Settings

pytestmark = pytest.mark.nightly


def test_eight_samples_of_made_video_are_learned_by_heart(tiny, monkeypatch):
    """TimeCycle's cycle error falls by ten and more, from where an untrained localizer points."""

    class Same(torch.utils.data.Dataset[dict[str, Any]]):
        """ClipDataset of which each clip has one."""

        def __init__(self, samples: Any) -> None:
            self.samples = samples

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
            return self.samples[0, place[1]]

    ordinary = OBJECTIVES["timecycle"]

    def model(settings: Settings) -> torch.nn.Module:
        made = ordinary.model(settings)
        made.encoder = TinyEncoder(width=8, channels=64)
        return made

    monkeypatch.setitem(
        OBJECTIVES,
        "timecycle",
        replace(
            ordinary,
            model=model,
            samples=lambda settings, clips: Same(ordinary.samples(settings, clips)),
            encoder=lambda settings: TinyEncoder(width=8, channels=64),
        ),
    )
    sizes = ("--side", 64, "--patch", 56, "--batchSize", 8, "--made-clips", 8, "--lr", 1e-3, "--minutes", 30)
    done = tiny("--objective", "timecycle", *sizes, "--steps", 100, "--workers", 0, "-c", "run")
    assert done.code == 0, done.err
    errors = [sum(line[f"cycle/{length}"] for length in range(1, 5)) / 4 for line in log("run")]
    first, last = sum(errors[:5]) / 5, sum(errors[-5:]) / 5
    print(f"cycle error {first:.4f} -> {last:.4f}")
    assert last < first / 10


def test_masks_are_carried_better_over_video_that_was_not_learned_from(tiny, monkeypatch):
    """A walk over eight made clips against the same network untrained: 15 points of J&F and more."""
    monkeypatch.setattr(objectives, "VALIDATION_SET", Path("held-out"))
    make_davis(Path("held-out"), frames=20, height=240, width=426, seed=objectives.VALIDATION_SEED)
    torch.manual_seed(0)
    settings = Settings(width=16, objective="walk")
    untrained = validate(OBJECTIVES["walk"].model(settings).encoder.eval(), Path("held-out"))
    done = tiny("--made-clips", 8, "--evaluate-every", 300, "--minutes", 30, "--workers", 0, "-c", "run")
    assert done.code == 0, done.err
    best = torch.load("run/best.pt", weights_only=True)["progress"]
    print(f"J&F {untrained:.3f} -> {best['best_score']:.3f}; {done.out.splitlines()[-4]}")
    assert best["best_step"] == 300
    assert best["best_score"] > untrained + 0.15


def test_compiled_to_machine_code_it_computes_the_same():
    torch.manual_seed(0)
    trunk = Trunk(18, width=4)
    images = torch.randn(2, 3, 32, 32)
    expected = trunk(images)
    torch.testing.assert_close(torch.compile(trunk.forward)(images), expected, atol=1e-5, rtol=1e-5)
