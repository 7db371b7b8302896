"""TimeCycle's objective: one step of the original program, and each part against its formula."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.assertions import raises_input_error
from timecycle.errors import InputError
from timecycle.models.timecycle import TimeCycle, grid_loss
from timecycle.models.tracking import Localizer, inlier_scores, patch_affinity, transformed_grid, warp

TYPES = {"float32": (torch.float32, 1e-5, 5e-3), "float64": (torch.float64, 1e-9, 1e-8)}


@pytest.fixture(scope="module", params=TYPES)
def step(request, oracle: Path):
    """The recorded first step, ours, and the tolerances of losses and gradient norms.

    The record's weights are from a seeded torch.randn, which gives other float32 numbers without AVX2: float64 losses
    then differ by 2e-7.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.randn gives the record's weights only on chips with AVX2")
    dtype, close, norm = TYPES[request.param]
    spec = importlib.util.spec_from_file_location("seeded", oracle / "seeded.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    shapes = dict(json.loads((oracle / "state_dict_keys.json").read_text())["train_model"])
    state = seeded.seeded_state_dict(shapes, 4321)
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    # After the cast, as the record was made: transforms far from zero.
    state["module.linear2.weight"] *= 10
    state["module.linear2.bias"] = torch.tensor([0.1, -0.15, 0.2], dtype=dtype)
    model = TimeCycle().to(dtype)
    model.load_release(state)
    recorded = np.load(oracle / "train_real_inputs.npz")
    frames, target, patch, theta = (
        torch.from_numpy(recorded[name]).to(dtype) for name in ("imgs", "img", "patch", "theta")
    )
    losses = model.losses(frames, target[:, 0], patch[:, 0], theta)
    losses.total.backward()
    case = f"real10_py2_{request.param}"
    written = json.loads((oracle / "train.json").read_text())["cases"][case]["steps"][0]
    return model, losses, written, np.load(oracle / f"train_{case}.npz"), close, norm


def test_losses_equal_the_originals(step):
    _, losses, written, _, close, _ = step
    np.testing.assert_allclose(losses.cycle.detach(), written["loss_targ_theta"], atol=close, rtol=0)
    assert losses.skip.item() == pytest.approx(written["loss_targ_theta_skip"][0], abs=close)
    assert -losses.inliers.item() == pytest.approx(written["loss_back_inliers"][0], abs=close)
    assert losses.total.item() == pytest.approx(written["loss"], abs=close)


def test_transforms_equal_the_originals(step):
    _, losses, _, arrays, close, _ = step
    back = torch.cat([losses.back[:c] for c in range(1, 5)])  # cycles share the backward tracks
    np.testing.assert_allclose(back.detach(), arrays["back_trans_thetas"], atol=close, rtol=0)
    np.testing.assert_allclose(torch.cat(losses.forward).detach(), arrays["forw_trans_thetas"], atol=close, rtol=0)
    np.testing.assert_allclose(losses.direct.flatten(0, 1).detach(), arrays["trans_out2"], atol=close, rtol=0)
    np.testing.assert_allclose(losses.skips.flatten(0, 1).detach(), arrays["trans_out3"], atol=close, rtol=0)


RENAMED = {
    "localizer.taps": "afterconv3_trans.weight",
    "localizer.conv2": "afterconv4_trans",
    "localizer.linear": "linear2",
    "encoder.head": "afterconv1",
}


def released(name: str) -> str:
    for ours, theirs in RENAMED.items():
        if name.startswith(ours):
            return "module." + theirs + name.removeprefix(ours)
    return name.replace("encoder.trunk.", "module.encoderVideo.")


def test_gradients_equal_the_originals(step):
    model, _, written, arrays, _, norm = step
    compared = 0
    for name, parameter in model.named_parameters():
        recorded = written["grad_norms"][released(name)]
        assert float(parameter.grad.norm()) == pytest.approx(recorded, rel=norm), name
        compared += 1
    assert compared == sum(value is not None for value in written["grad_norms"].values())
    if parameter.dtype == torch.float64:
        for key in (name for name in arrays.files if name.startswith("grad/")):
            ours = next(p for n, p in model.named_parameters() if released(n) == key.removeprefix("grad/"))
            exact = torch.from_numpy(arrays[key]).double().reshape(ours.shape)
            torch.testing.assert_close(ours.grad, exact, atol=1e-6 * float(exact.abs().max()), rtol=0)


def test_running_statistics_are_updated_three_times(step):
    model, _, written, _, close, _ = step
    norm = model.encoder.trunk.bn1
    assert int(norm.num_batches_tracked) == written["num_batches_tracked_after_step0"]
    np.testing.assert_allclose(norm.running_mean[:8], written["bn1_running_mean"], atol=close, rtol=0)
    np.testing.assert_allclose(norm.running_var[:8], written["bn1_running_var"], atol=close, rtol=0)


def random_theta(batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle, shift = (
        torch.rand(batch, generator=generator).double() - 0.5,
        torch.rand(batch, 2, generator=generator).double(),
    )
    c, s = angle.cos() / 3, angle.sin() / 3
    return torch.stack([torch.stack([c, -s, shift[:, 0] - 0.5], 1), torch.stack([s, c, shift[:, 1] - 0.5], 1)], 1)


def test_affinity_is_a_softmax_over_keys_column_by_column():
    generator = torch.Generator().manual_seed(0)
    patch, frame = (torch.randn(2, 3, n, n, generator=generator).double() for n in (2, 4))
    found = patch_affinity(patch, frame)
    for b, x, y, v, u in ((0, 1, 2, 0, 1), (1, 3, 0, 1, 1)):
        logits = torch.einsum("dyx,d->yx", frame[b], patch[b, :, v, u]) * 512**0.5
        assert float(found[b, x * 4 + y, v, u]) == pytest.approx(float(logits.flatten().softmax(0)[y * 4 + x]))


def test_inlier_score_is_the_mass_on_a_warped_mask():
    """By its definition: m[j, q] as a full matrix, by warping the unit map of every key."""
    generator = torch.Generator().manual_seed(1)
    affinity = torch.rand(3, 25, 4, 4, generator=generator).double().softmax(dim=1)
    theta = random_theta(3)
    theta[2, :, 2] = torch.tensor([0.9, -0.9])  # partly outside the frame
    moved = torch.cat([theta[:, :, :2], theta[:, :, 2:] * 227 / 210], dim=2)
    maps = torch.eye(25).double().view(1, 25, 5, 5).transpose(2, 3).expand(3, -1, -1, -1)  # key x * 5 + y at [y, x]
    mask = warp(maps, moved, 4)
    expected = (mask * affinity).sum((1, 2, 3)) / (mask + 1e-5).sum((1, 2, 3))
    torch.testing.assert_close(inlier_scores(affinity, theta), expected)


def test_grid_loss_is_the_squared_distance_of_points():
    found, wanted = random_theta(2, 1), random_theta(2, 2)
    points = [(x, y, 1.0) for x in np.linspace(-1, 1, 20) for y in np.linspace(-1, 1, 20)]
    distances = [((found[b] - wanted[b]).numpy() @ np.array(p)) for b in range(2) for p in points]
    assert float(grid_loss(found, wanted)) == pytest.approx(np.mean([d @ d for d in distances]))
    assert float(grid_loss(found, found)) == 0


def test_the_identity_warp_is_the_frame():
    frame = torch.rand(1, 2, 5, 5)
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(warp(frame, identity, 5), frame)
    assert transformed_grid(identity, 3)[0, 0, 2].tolist() == [1, -1]  # x runs along a row


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    theta, wanted = random_theta(2, 3).requires_grad_(), random_theta(2, 4)
    affinity = torch.rand(2, 16, 3, 3, generator=generator).double().requires_grad_()
    patch, frame = (torch.randn(1, 3, n, n, generator=generator).double().requires_grad_() for n in (2, 3))
    assert torch.autograd.gradcheck(inlier_scores, (affinity, theta))
    assert torch.autograd.gradcheck(lambda t: grid_loss(t, wanted), (theta,))
    assert torch.autograd.gradcheck(lambda p, f: patch_affinity(0.1 * p, f), (patch, frame))
    torch.manual_seed(0)
    localizer = Localizer(4, 7).double()
    seen = torch.rand(1, 16, 7, 7, generator=generator).double().requires_grad_()
    assert torch.autograd.gradcheck(localizer, (seen,))


def test_weights_of_another_size_are_named():
    model = TimeCycle(64, 56)
    state = {released(name): value for name, value in model.state_dict().items()}
    state["module.afterconv3_trans.weight"] = torch.zeros(128, 900, 4, 4)
    with pytest.raises(InputError, match=r"localizer.taps is \[128, 900, 4, 4\]; expected \[16, 64, 128\]"):
        model.load_release(state)


def test_other_sizes():
    torch.manual_seed(0)
    model = TimeCycle(side=64, patch=56)
    found = model.losses(
        torch.randn(1, 2, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.randn(1, 3, 56, 56), random_theta(1).float()
    )
    assert [len(track) for track in found.forward] == [1, 2]
    assert torch.isfinite(found.total)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: TimeCycle(side=100), "side is 100; expected a positive multiple of 8 pixels"),
        (lambda: TimeCycle(patch=48), "side is 30 and patch 6; expected at least 1 and 7 feature positions"),
        (
            lambda: TimeCycle(64, 56).losses(
                torch.rand(1, 2, 3, 64, 64), torch.rand(1, 3, 64, 60), torch.rand(1, 3, 56, 56), random_theta(1)
            ),
            "target has shape [1, 3, 64, 60]; expected [1, 3, 64, 64]",
        ),
        (lambda: TimeCycle(64, 56).load_release({}), "the weights do not fit: encoder.trunk.conv1.weight is missing"),
    ],
)
def test_sizes_and_weights_that_do_not_fit_are_named(call, said):
    with raises_input_error(said):
        call()
