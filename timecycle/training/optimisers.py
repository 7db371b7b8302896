"""Optimiser and learning rate of a run."""

import math

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from timecycle.training.settings import Settings

SECOND_BETA = 0.999
SGD_MOMENTUM = 0.95  # of the release's program


def make_optimiser(settings: Settings, model: nn.Module) -> optim.Optimizer:
    """Adam with the release's betas, AdamW with the same, or SGD, over all parameters."""
    if settings.optimiser == "sgd":
        return optim.SGD(model.parameters(), settings.lr, SGD_MOMENTUM, weight_decay=settings.weight_decay)
    kind = optim.Adam if settings.optimiser == "adam" else optim.AdamW
    betas = (settings.momentum, SECOND_BETA)
    return kind(model.parameters(), settings.lr, betas, weight_decay=settings.weight_decay)


def make_schedule(settings: Settings, optimiser: optim.Optimizer, length: int) -> LambdaLR:
    """The learning rate over `length` steps: rising over the warm-up, then constant or half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        done = (step - settings.warmup) / max(1, length - settings.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimiser, factor)
