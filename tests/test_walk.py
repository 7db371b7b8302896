"""Contrastive random walks against products of transition matrices; the loss and its gradients; training steps."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.assertions import raises_input_error
from timecycle.errors import InputError
from timecycle.models.encoder import Trunk
from timecycle.models.walk import NO_TARGET, CropWalk, GridWalk, Step, initialize, palindromes, walk_losses
from timecycle.ops.attention import AttentionProblem, EdgeDropout, _logits

TEMPERATURE = 0.07


def _nodes(frames: int, samples: int = 2, nodes: int = 5, channels: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    many = torch.randn(frames, samples, nodes, channels, generator=generator, dtype=torch.float64)
    return list(functional.normalize(many, dim=3))


def _plain(nodes: Tensor, others: Tensor, dropped: EdgeDropout | None = None) -> Tensor:
    """The transition matrix of a step."""
    threshold, seed = (0, 0) if dropped is None else (dropped.threshold, dropped.seed)
    ones = torch.ones(others.shape[:2], dtype=nodes.dtype)
    problem = AttentionProblem(nodes, others, others[None], ones, TEMPERATURE, [0], threshold, seed)
    return _logits(problem).softmax(dim=2)


def _matrices(earlier: int, back: bool) -> Step:
    return lambda nodes, others, rest: _plain(nodes, others) @ rest


@pytest.fixture
def walk() -> CropWalk:
    torch.manual_seed(0)
    return CropWalk(Trunk(18, 3, "reflect", 4), 8, TEMPERATURE, 0.3)


def test_walks_over_one_set_of_nodes_equal_the_published_palindromes() -> None:
    """A12 A23 .. and the transposed affinities back, multiplied from the left as the published code does."""
    ahead = _nodes(4)
    there = [_plain(a, b) for a, b in itertools.pairwise(ahead)]
    back = [_plain(b, a) for a, b in itertools.pairwise(ahead)]
    for k, found in enumerate(palindromes(ahead, None, _matrices), start=1):
        chain = torch.eye(5, dtype=torch.float64)
        for matrix in there[:k] + back[:k][::-1]:
            chain = chain @ matrix
        torch.testing.assert_close(found, chain.expand_as(found), rtol=1e-12, atol=1e-14)


def test_walks_return_over_the_other_set_of_crops() -> None:
    """A1 .. A4, then B3, B2, B1."""
    ahead, back = _nodes(4), _nodes(3, seed=1)
    for k, found in enumerate(palindromes(ahead, back, _matrices), start=1):
        way = ahead[: k + 1] + back[:k][::-1]
        chain = torch.eye(5, dtype=torch.float64)
        for a, b in itertools.pairwise(way):
            chain = chain @ _plain(a, b)
        torch.testing.assert_close(found, chain.expand_as(found), rtol=1e-12, atol=1e-14)


def test_the_steps_of_the_model_are_softmax_affinities_with_edge_dropout(walk: CropWalk) -> None:
    nodes, others, rest = _nodes(2)[0], _nodes(2)[1], torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    steps = walk._steps(4)
    found, again = (steps(1, True)(nodes, others, rest) for _ in range(2))
    assert torch.equal(found, again)  # walks of all lengths share the dropout of a step
    assert (found == 0).any()
    assert not torch.equal(found, steps(1, False)(nodes, others, rest))
    assert not torch.equal(found, steps(0, True)(nodes, others, rest))
    walk.eval()
    torch.testing.assert_close(walk._steps(4)(1, True)(nodes, others, rest), _plain(nodes, others))


def test_the_loss_is_the_negative_log_likelihood_of_the_target() -> None:
    end = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    losses = walk_losses([end], torch.tensor([[0, NO_TARGET], [1, 0]]))
    expected = (-torch.log(torch.tensor(0.5)) - torch.log(torch.tensor(0.2)) / 2) / 2
    assert losses.nll.tolist() == pytest.approx([expected.item()])
    assert losses.accuracy.tolist() == pytest.approx([(1 + 0.5) / 2])
    assert losses.scalars() == pytest.approx({"loss": expected.item(), "nll/1": expected.item(), "accuracy/1": 0.75})


def test_an_unreachable_target_has_a_finite_loss_and_gradient() -> None:
    end = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    losses = walk_losses([end], torch.tensor([[1]]))
    losses.total.backward()
    assert losses.total.isfinite()
    assert end.grad is not None
    assert end.grad.isfinite().all()
    assert walk_losses([end], torch.tensor([[NO_TARGET]])).total.item() == 0


def test_gradients_of_walks(walk: CropWalk) -> None:
    """Against finite differences, with edge dropout."""
    ahead, back = _nodes(3, 1, 4, 3), _nodes(2, 1, 4, 3, seed=1)
    steps = walk._steps(3)
    target = torch.tensor([[2, NO_TARGET, 0, 1]])

    def loss(*nodes: Tensor) -> Tensor:
        unit = [functional.normalize(x, dim=2) for x in nodes]
        return walk_losses(palindromes(unit[:3], unit[3:], steps), target).total

    inputs = [x.requires_grad_() for x in (*ahead, *back)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_walks_on_a_still_video_reach_their_targets_at_low_temperature(walk: CropWalk) -> None:
    """With equal crops in both directions every node's nearest neighbor is itself."""
    walk.eval()
    walk.temperature = 1e-4
    frame = torch.randn(1, 1, 3, 64, 64)
    target = torch.arange(64)[None]
    losses = walk(frame.expand(1, 4, -1, -1, -1), frame.expand(1, 3, -1, -1, -1), target)
    assert losses.accuracy.tolist() == [1, 1, 1]
    assert losses.total.item() < 1e-3
    shuffled = walk(frame.expand(1, 4, -1, -1, -1), frame.expand(1, 3, -1, -1, -1), target.roll(1, dims=1))
    assert shuffled.total.item() > 1


@pytest.mark.parametrize("form", ["crops", "grid"])
def test_some_steps_of_training_lower_the_loss(form: str, walk: CropWalk) -> None:
    torch.manual_seed(1)
    video = functional.interpolate(torch.randn(4, 3, 20, 20), scale_factor=8, mode="bicubic")
    clip = torch.stack([video[:, :, i : i + 96, i : i + 96] for i in range(4)], dim=1)
    if form == "crops":
        model, batch = walk, (clip, clip[:, :3], torch.arange(144).expand(4, -1))
    else:
        model = GridWalk(Trunk(18, 3, "reflect", 4), 8)
        patches = clip.unfold(3, 48, 24).unfold(4, 48, 24).flatten(3, 4)  # [B, T, 3, 9, 48, 48]
        batch = (patches.transpose(2, 3),)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    found = []
    for _ in range(12):
        losses = model(*batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        found.append(losses.total.item())
    assert losses.nll.shape == (3,)
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize(
    ("ahead", "back", "target", "said"),
    [
        ((1, 1, 3, 64, 64), (1, 0, 3, 64, 64), (1, 64), "ahead has shape"),
        ((1, 4, 3, 64, 60), (1, 3, 3, 64, 60), (1, 64), "whole 8 pixels"),
        ((1, 4, 3, 64, 64), (1, 4, 3, 64, 64), (1, 64), "back has shape"),
        ((1, 4, 3, 64, 64), (1, 3, 3, 64, 64), (1, 63), "target [1, 63]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    walk: CropWalk, ahead: tuple, back: tuple, target: tuple, said: str
) -> None:
    with raises_input_error(said):
        walk(torch.zeros(ahead), torch.zeros(back), torch.zeros(target, dtype=torch.int64))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="temperature is 0"):
        CropWalk(Trunk(18, 3, "reflect", 4), temperature=0)
    with pytest.raises(InputError, match="rate of edge dropout is 1"):
        GridWalk(Trunk(18, 3, "reflect", 4), edge_dropout=1.0)
    with pytest.raises(InputError, match="patches has shape"):
        GridWalk(Trunk(18, 3, "reflect", 4))(torch.zeros(1, 1, 9, 3, 64, 64))


class PatchMaps(torch.nn.Module):
    """An encoder that is no ResNet."""

    def __init__(self, stride: int = 8, **attributes: int) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 6, stride, stride)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 6, H / stride, W / stride]."""
        return self.patches(images)


def test_any_encoder_walks_and_keeps_its_weights() -> None:
    encoder = PatchMaps(channels=6)
    before = encoder.patches.weight.clone()
    walk = CropWalk(encoder, 8)
    torch.testing.assert_close(encoder.patches.weight, before, rtol=0, atol=0)
    clip, target = torch.rand(2, 3, 3, 16, 24), torch.arange(6).expand(2, -1)
    walk(clip, clip[:, :2], target).total.backward()
    assert encoder.patches.weight.grad.abs().max() > 0
    trunk = Trunk(18, 3, "reflect", 4)
    before = trunk.conv1.weight.clone()
    initialize(GridWalk(trunk, 8).encoder)
    assert (trunk.conv1.weight != before).all()
    assert trunk.conv1.weight.std().item() == pytest.approx((2 / (4 * 49)) ** 0.5, rel=0.1)


def test_encoders_that_do_not_fit_are_refused() -> None:
    with raises_input_error("PatchMaps, has no attribute channels"):
        CropWalk(PatchMaps())
    clip, target = torch.rand(1, 2, 3, 32, 32), torch.arange(16)[None]
    with raises_input_error("the encoder returned [3, 6, 2, 2] for images [3, 3, 32, 32]; expected [3, 6, 4, 4]"):
        CropWalk(PatchMaps(16, channels=6))(clip, clip[:, :1], target)


def test_names_of_version_0_1_work(walk: CropWalk) -> None:
    ahead, target = torch.rand(1, 2, 3, 64, 64), torch.arange(64)[None]
    with pytest.warns(DeprecationWarning, match="home= is called target= now"):
        losses = walk(ahead, ahead[:, :1], home=target)
    with pytest.warns(DeprecationWarning, match=".walks is called .nll now"):
        assert losses.walks is losses.nll
    with pytest.warns(DeprecationWarning, match=".home is called .accuracy now"):
        assert losses.home is losses.accuracy
