"""DistributedBatchSampler: each clip once an epoch, the same steps for any number of ranks, resumed by step."""

from collections import Counter
from itertools import chain, islice

import pytest
from torch.utils.data import DataLoader, Dataset

from timecycle.errors import InputError
from timecycle.training.loader import DistributedBatchSampler


def joined(lists):
    return list(chain.from_iterable(lists))


def steps_of(batches, count):
    """The samples of the first steps, each as one list."""
    lists = list(islice(batches, count * batches.accumulate))
    return [joined(lists[i : i + batches.accumulate]) for i in range(0, len(lists), batches.accumulate)]


def test_an_epoch_holds_each_clip_at_most_once_and_drops_the_rest():
    batches = DistributedBatchSampler(23, batch=5, seed=1)
    assert batches.steps_per_epoch == 4
    found = steps_of(batches, 12)
    for epoch in range(3):
        places = joined(found[4 * epoch : 4 * epoch + 4])
        assert {e for e, _ in places} == {epoch}
        indices = [index for _, index in places]
        assert len(set(indices)) == 20
        assert set(indices) <= set(range(23))
    assert [batches.step(step)[0][0][0] for step in (0, 3, 4, 11)] == [0, 0, 1, 2]
    assert [i for _, i in joined(found[:4])] != [i for _, i in joined(found[4:8])]
    assert steps_of(DistributedBatchSampler(23, 5, seed=2), 4) != found[:4]


def test_what_is_dropped_changes_with_the_epoch():
    seen = Counter(index for step in steps_of(DistributedBatchSampler(23, 5, seed=1), 80) for _, index in step)
    assert set(seen) == set(range(23))


@pytest.mark.parametrize(("batch", "ranks", "accumulate"), [(12, 1, 1), (6, 2, 1), (2, 3, 2), (3, 1, 4), (1, 4, 3)])
@pytest.mark.parametrize("clips", [50, 12, 5])
def test_ranks_and_micro_batches_share_the_same_steps(clips, batch, ranks, accumulate):
    alone = steps_of(DistributedBatchSampler(clips, 12, seed=3), 9)
    shared = [
        steps_of(DistributedBatchSampler(clips, batch, 3, rank, ranks, accumulate=accumulate), 9)
        for rank in range(ranks)
    ]
    for step, expected in enumerate(alone):
        parts = [rank[step] for rank in shared]
        assert all(len(part) == batch * accumulate for part in parts)
        assert sorted(joined(parts)) == sorted(expected)
        assert len(set(expected)) == 12


def test_micro_batches_of_all_ranks_are_those_of_one_process():
    alone = list(islice(DistributedBatchSampler(40, 6, seed=3, accumulate=2), 8))
    ranks = [list(islice(DistributedBatchSampler(40, 3, 3, rank, 2, accumulate=2), 8)) for rank in range(2)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_any_step_is_resumed_by_its_number():
    whole = list(islice(DistributedBatchSampler(23, 2, seed=1, accumulate=2), 40))
    for step in (1, 4, 5, 13):
        resumed = DistributedBatchSampler(23, 2, 1, start_step=step, accumulate=2)
        assert list(islice(resumed, 6)) == whole[2 * step : 2 * step + 6]


def test_fewer_clips_than_a_step_go_on_into_the_next_epochs():
    batches = DistributedBatchSampler(5, batch=12, seed=0)
    assert batches.steps_per_epoch == 1
    places = joined(steps_of(batches, 5))
    assert [epoch for epoch, _ in places] == [i // 5 for i in range(60)]
    assert all(sorted(index for _, index in places[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 60, 5))
    assert [batches.step(step)[0][0][0] for step in range(3)] == [0, 2, 4]


class Places(Dataset):
    """Samples that are their indices."""

    def __getitem__(self, place):
        return place


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_the_sampler(workers):
    batches = DistributedBatchSampler(7, batch=3, seed=0, start_step=1)
    loader = iter(DataLoader(Places(), batch_sampler=batches, num_workers=workers, collate_fn=list))
    assert [next(loader) for _ in range(4)] == list(islice(batches, 4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clips": 0}, "clips is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"start_step": -1}, "start_step is -1; expected at least 0"),
        ({"rank": 2, "ranks": 2}, "rank is 2; expected 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_named(options, said):
    with pytest.raises(InputError, match=f"^{said}$"):
        DistributedBatchSampler(**{"clips": 9, "batch": 2, "seed": 0, **options})
