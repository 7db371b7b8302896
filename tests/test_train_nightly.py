"""Minutes of training on a CPU lower the loss and raise validation scores (make nightly)."""

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
from timecycle.training.objectives import OBJECTIVES
from timecycle.training.settings import CropWalkSettings, TimeCycleSettings

pytestmark = pytest.mark.nightly


def test_timecycle_overfits_eight_samples_of_synthetic_video(tiny, monkeypatch):
    """The cycle error falls to less than a tenth of the untrained localizer's."""

    class Same(torch.utils.data.Dataset[dict[str, Any]]):
        """One sample of each clip."""

        def __init__(self, samples: Any) -> None:
            self.samples = samples

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
            return self.samples[0, place[1]]

    ordinary = OBJECTIVES[TimeCycleSettings]

    def model(settings: TimeCycleSettings) -> torch.nn.Module:
        made = ordinary.model(settings)
        made.encoder = TinyEncoder(width=8, channels=64)
        return made

    monkeypatch.setitem(
        OBJECTIVES,
        TimeCycleSettings,
        replace(
            ordinary,
            model=model,
            dataset=lambda settings, clips: Same(ordinary.dataset(settings, clips)),
            encoder=lambda settings: TinyEncoder(width=8, channels=64),
        ),
    )
    sizes = ("--frame-side", 64, "--patch-side", 56, "--batchSize", 8, "--synthetic-clips", 8, "--steps", 100)
    done = tiny("--objective", "timecycle", *sizes, "--lr", 1e-3, "--minutes", 30, "--workers", 0, "-c", "run")
    assert done.code == 0, done.err
    errors = [sum(line[f"cycle/{length}"] for length in range(1, 5)) / 4 for line in log("run")]
    first, last = sum(errors[:5]) / 5, sum(errors[-5:]) / 5
    print(f"cycle error {first:.4f} -> {last:.4f}")
    assert last < first / 10


def test_walk_training_raises_scores_on_unseen_video(tiny, monkeypatch):
    """Trained on eight synthetic clips, J&F is at least 15 points above the untrained network's."""
    monkeypatch.setattr(objectives, "VALIDATION_SET", Path("validation"))
    make_davis(Path("validation"), frames=20, height=240, width=426, seed=objectives.VALIDATION_SEED)
    torch.manual_seed(0)
    settings = CropWalkSettings(width=16)
    untrained = objectives.validate(OBJECTIVES[CropWalkSettings].model(settings).encoder.eval(), Path("validation"))
    done = tiny("--synthetic-clips", 8, "--evaluate-every", 300, "--minutes", 30, "--workers", 0, "-c", "run")
    assert done.code == 0, done.err
    best = torch.load("run/best.pt", weights_only=True)["progress"]
    print(f"J&F {untrained:.3f} -> {best['best_score']:.3f}; {done.out.splitlines()[-4]}")
    assert best["best_step"] == 300
    assert best["best_score"] > untrained + 0.15


def test_the_compiled_trunk_computes_the_same():
    torch.manual_seed(0)
    trunk = Trunk(18, width=4)
    images = torch.randn(2, 3, 32, 32)
    expected = trunk(images)
    torch.testing.assert_close(torch.compile(trunk.forward)(images), expected, atol=1e-5, rtol=1e-5)
