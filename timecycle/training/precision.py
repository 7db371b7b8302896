"""How the trunk computes: precision (autocast), memory format, torch.compile, activation checkpointing.

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
from timecycle.training.distributed import Distributed
from timecycle.training.settings import RunSettings


def prepare_model(model: nn.Module, settings: RunSettings, distributed: Distributed) -> nn.Module:
    """Put the model on its device in training mode and configure its trunk, in place; tensors keep their names.

    Raises InputError for what the device does not support.
    """
    if settings.sync_batchnorm:
        if distributed.device.type != "cuda":
            raise InputError(
                "--sync-batchnorm is given, and there is no GPU; expected it left out, as PyTorch needs one"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(distributed.device).train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for module in model.modules():
        if isinstance(module, Trunk):
            _configure_trunk(module, settings, distributed.device)
    return model


def _configure_trunk(trunk: Trunk, settings: RunSettings, device: torch.device) -> None:
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    trunk.to(memory_format=memory_format)  # type: ignore[call-overload]
    if settings.checkpoint_activations:
        for block in (block for stage in trunk.children() if isinstance(stage, nn.Sequential) for block in stage):
            contexts = functools.partial(_recompute_contexts, block)
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    compute = torch.compile(trunk.forward) if settings.compile else trunk.forward

    def forward(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            features = compute(images)
        return (features.float() if settings.autocast else features).contiguous()

    trunk.forward = forward  # type: ignore[method-assign]


def _recompute_contexts(block: nn.Module) -> tuple[Any, Any]:
    """Contexts of a block's forward pass and of its recomputation in the backward pass."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: the forward pass has counted the batch."""
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
