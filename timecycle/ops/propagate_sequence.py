"""propagate_sequence: labels propagated through a whole video, from affinities computed for all its frames.

Features never see labels, so weights and indices of every target can be computed together; what is left is a chain of
small sums, each frame's labels feeding the next:

    for each target b in turn:
        soft = propagate_labels(weights[b], indices[b], labels, frames[b])
        labels[targets[b]] = rescale(soft)

Source: TimeCycle (CVPR 2019), section 4.2; `rescale` is its scaling of every class to [0, 1] before it is fed back,
which other protocols leave out.
"""

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.kernels.launch import Launch
from timecycle.ops import backends
from timecycle.ops.backends import Backend
from timecycle.ops.checks import Doubt, bounds_checked, filled, outside, refuse
from timecycle.ops.propagate_labels import check_affinity, check_labels, index_doubt, label_frame_doubt
from timecycle.ops.propagate_labels import reference as labels_reference


def propagate_sequence(
    weights: Tensor,
    indices: Tensor,
    labels: Tensor,
    frames: Tensor,
    targets: Tensor,
    *,
    rescale: bool = False,
    backend: str | None = None,
    check: bool = True,
) -> Tensor:
    """Labels propagated through a whole video: its label maps after all targets.

    Args:
        weights: [B, N, K] floating point, as `topk_affinity` returns them for all targets, in the video's order.
        indices: [B, N, K] int64 into the slots, t * N + m; -1 contributes nothing.
        labels: [G, N, L] soft labels, dtype of the weights: those of annotated frames, and room for the others.
        frames: [B, T] int64: slot t of target b carries label map frames[b, t]; -1 is an empty slot.
        targets: [B] int64: the label map that target b becomes; it must not be among frames[b].
        rescale: shift and scale each class of a target to [0, 1] over its map; a constant class becomes 0.
        backend: 'cuda', 'cpu' or 'reference'; the first that can run the call if not given.
        check: refuse what points outside, and targets among their own frames; on a CPU that is always refused. On a GPU
            the CPU waits for it once; without it a call of backend 'cuda' reads nothing back. What points outside then
            contributes nothing, a target outside the labels is left out, and one among its own frames is undefined.

    Returns:
        [G, N, L], dtype of the weights: labels with the targets' maps in place. Not differentiable: `propagate_labels`
        is, frame by frame.

    Raises:
        InputError: shapes or dtypes do not fit together, an index points outside the slots, a target is its own
            context, or the backend that was asked for cannot run the call.
    """
    check_affinity(weights, indices)
    check_labels(labels, frames, len(weights), weights.dtype, "frames")
    if labels.shape[1] != weights.shape[1]:
        raise InputError(f"labels has {labels.shape[1]} positions; expected {weights.shape[1]}, as many as queries")
    if targets.dtype != torch.int64 or targets.shape != weights.shape[:1]:
        raise InputError(f"targets is {targets.dtype} {list(targets.shape)}; expected int64 [{len(weights)}]")
    for name, tensor in (("labels", labels), ("frames", frames), ("targets", targets), ("indices", indices)):
        if tensor.device != weights.device:
            raise InputError(f"{name} is on {tensor.device}; expected {weights.device}, where the weights are")
    return _operator(weights.detach(), indices, labels.detach(), frames, targets, rescale, backend or "", check)


def rescaled(labels: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Labels shifted and scaled to [0, 1] over the positions `dim`; what is constant there becomes 0, never NaN."""
    if not labels.numel():  # amin has nothing to reduce
        return labels
    shifted = labels - labels.amin(dim=dim, keepdim=True)
    largest = shifted.amax(dim=dim, keepdim=True)
    return torch.where(largest > 0, shifted / largest, 0.0)


@torch.library.custom_op("timecycle::propagate_sequence", mutates_args=())
def _operator(
    weights: Tensor,
    indices: Tensor,
    labels: Tensor,
    frames: Tensor,
    targets: Tensor,
    rescale: bool,
    backend: str,
    check: bool = True,
) -> Tensor:
    """The operator as PyTorch sees it."""
    if bounds_checked(check, weights):
        refuse(
            [
                index_doubt(indices, frames.shape[1], labels.shape[1]),
                label_frame_doubt(labels, frames, "frames"),
                *_target_doubts(len(labels), frames, targets),
            ]
        )
    arguments = (weights, indices, labels, frames, targets, rescale)
    return backends.choose("propagate_sequence", backend or None, *arguments).run(*arguments)


def _target_doubts(maps: int, frames: Tensor, targets: Tensor) -> list[Doubt]:
    """Whether a target is none of so many label maps, or in its own context."""
    own = frames == targets[:, None]

    def sentence() -> str:
        b = int(own.any(dim=1).nonzero()[0])
        return f"target {b} becomes label map {int(targets[b])}, which is in its context; expected another"

    return [
        Doubt(
            outside(targets, 0, maps),
            lambda: f"targets holds {targets.tolist()}; expected label maps, 0 to {maps - 1}",
        ),
        Doubt(own.any(), sentence),
    ]


@_operator.register_fake
def _(weights, indices, labels, frames, targets, rescale, backend, check=True):  # type: ignore[no-untyped-def]
    return labels.new_empty(labels.shape)


def reference(
    weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, targets: Tensor, rescale: bool
) -> Tensor:
    """The definition: one frame after the other."""
    labels = labels.clone(memory_format=torch.contiguous_format)
    for b, target in enumerate(targets.tolist()):
        if not 0 <= target < len(labels):
            continue
        out = labels_reference(weights[b : b + 1], indices[b : b + 1], labels, frames[b : b + 1])[0]
        labels[target] = rescaled(out, dim=0) if rescale else out
    return labels


def _why_not_native(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, *_: object) -> str | None:
    """Why the algorithm of csrc/topk_affinity/propagate_sequence.h cannot run a call, on whatever device."""
    if weights.dtype != torch.float32:
        return f"it has no {weights.dtype} kernel"
    if frames.shape[1] * labels.shape[1] >= 2**32:
        return f"{frames.shape[1]} slots of {labels.shape[1]} positions are more than 32 bits number"
    return None


def _why_not_cpu(*arguments: Tensor) -> str | None:
    if arguments[0].device.type != "cpu":
        return f"the weights are on {arguments[0].device}"
    return _why_not_native(*arguments)


def _why_not_cuda(*arguments: Tensor) -> str | None:
    return backends.why_not_cuda(arguments[0]) or _why_not_native(*arguments)


def _made_fit(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Contiguous arguments with a copy of the labels, then scratch: extremes [B, L, 2]."""
    ready = (weights.contiguous(), indices.contiguous(), labels.clone(memory_format=torch.contiguous_format))
    # -1, which has the bits of the largest uint32, and 0; without a copy to a GPU, for which the CPU would wait.
    extremes = torch.arange(-1, 1, dtype=torch.int32, device=labels.device)
    extremes = extremes.repeat(len(weights), labels.shape[2], 1)
    return *ready, frames.contiguous(), targets.contiguous(), extremes


def _run_cpu(*arguments: Tensor) -> Tensor:
    assert backends.NATIVE is not None
    ready = _made_fit(*arguments[:5])
    backends.NATIVE.propagate_sequence(*ready, arguments[5])
    return ready[2]


def run_cuda(*arguments: Tensor, on: Launch | None = None) -> Tensor:
    """One launch, on the current stream of the tensors' device unless `on` is given."""
    on = on or backends.launch(arguments[0])
    weights, indices, labels, *maps = arguments[:5]
    # The kernel does not know how many label maps there are. It leaves out those below 0.
    frames, targets = (x.where(filled(x, len(labels)), -1) for x in maps)
    ready = _made_fit(weights, indices, labels, frames, targets)
    weights, _, labels, frames, *_ = ready
    if len(weights) and labels.numel():
        sizes = (*weights.shape, frames.shape[1], labels.shape[2])
        with torch.cuda.device_of(labels):
            on.module.propagate_sequence(*(x.data_ptr() for x in ready), *sizes, arguments[5], on.device, on.stream)
    return labels


backends.register(
    "propagate_sequence",
    Backend("cuda", backends.CUDA_MISSING, _why_not_cuda, run_cuda, "cuda"),
    Backend("cpu", backends.NATIVE_MISSING, _why_not_cpu, _run_cpu),
    backends.reference(reference),
)
