"""How the trunk computes: number format, memory order, compilation, what is kept for the way back.

Only the trunk: it is nearly all of a step's work, and the losses keep float32 and their own kernels.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from timecycle.errors import InputError
from timecycle.models.encoder import Trunk
from timecycle.training.distributed import World
from timecycle.training.settings import Settings


def prepare(model: nn.Module, settings: Settings, world: World) -> nn.Module:
    """The model on its device, in training mode, as the settings say; changed in place, its tensors' names kept.

    Raises InputError for what the device cannot do.
    """
    if settings.sync_batchnorm:
        if world.device.type != "cuda":
            raise InputError(
                "--sync-batchnorm is given, and there is no GPU; expected it left out, as PyTorch needs one"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(world.device).train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for module in model.modules():
        if isinstance(module, Trunk):
            _hasten(module, settings, world.device)
    return model


def _hasten(trunk: Trunk, settings: Settings, device: torch.device) -> None:
    order = torch.channels_last if settings.channels_last else torch.contiguous_format
    trunk.to(memory_format=order)  # type: ignore[call-overload]
    if settings.checkpoint_activations:
        for block in (block for stage in trunk.children() if isinstance(stage, nn.Sequential) for block in stage):
            contexts = functools.partial(_contexts, block)
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    plain = torch.compile(trunk.forward) if settings.compile else trunk.forward

    def forward(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=order)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            found = plain(images)
        return (found.float() if settings.autocast else found).contiguous()

    trunk.forward = forward  # type: ignore[method-assign]


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Of the first computation of a block, and of the second, on the way back."""
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Running statistics as they are: the batch was counted when it was first seen."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.momentum is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
