"""propagate_labels against the sum written out."""

import pytest
import torch

from tests.assertions import raises_input_error
from timecycle.ops import propagate_labels


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """B 2, N 5, K 4, T 3, M 6, G 4, L 2; with missing neighbors and an empty slot."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64)
    indices = torch.randint(-1, 3 * 6, (2, 5, 4), generator=generator)
    labels = torch.rand(4, 6, 2, generator=generator, dtype=torch.float64)
    return weights, indices, labels, torch.tensor([[3, 0, 0], [-1, 2, 1]])


def test_equals_the_sum_written_out():
    weights, indices, labels, frames = random_case()
    expected = torch.zeros(2, 5, 2, dtype=torch.float64)
    for b in range(2):
        for n in range(5):
            for weight, index in zip(weights[b, n], indices[b, n].tolist(), strict=True):
                label_map = frames[b, index // 6] if index >= 0 else -1
                if label_map >= 0:
                    expected[b, n] += weight * labels[label_map, index % 6]
    torch.testing.assert_close(propagate_labels(weights, indices, labels, frames), expected)


def test_gradients_to_weights_and_labels():
    weights, indices, labels, frames = random_case()
    weights.requires_grad_(), labels.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: propagate_labels(w, indices, x, frames), (weights, labels))


@pytest.mark.parametrize(
    ("position", "value", "named"),
    [
        (0, torch.zeros(2, 5, 3), "weights has shape [2, 5, 3] and indices [2, 5, 4]"),
        (1, torch.full((2, 5, 4), 18), "expected -1 to 17"),
        (1, torch.zeros(2, 5, 4, dtype=torch.int32), "torch.int32"),
        (2, torch.zeros(4, 6, 2), "expected torch.float64 [G, M, L]"),
        (3, torch.zeros(3, 3, dtype=torch.int64), "frames is torch.int64 [3, 3]"),
    ],
)
def test_bad_arguments_are_named(position, value, named):
    arguments = list(random_case())
    arguments[position] = value
    with raises_input_error(named):
        propagate_labels(*arguments)
