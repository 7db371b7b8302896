"""What train.py's options for the trunk cost and gain in a step: python -m benchmarks.training_options [--threads 1].

Seconds of a step (forward, backward, optimizer; processor time of one thread counts, so that a busy machine does not)
and the memory that a step adds, each option in a process of its own, at the sizes each objective is trained with on a
CPU. The loss of the first step is shown beside them: options that are no option would differ.
"""

import argparse
import json
import subprocess
import sys
import time

import torch

from timecycle.evaluation.davis.results import peak_memory_mb
from timecycle.training.command_line import read_command_line, resolved
from timecycle.training.distributed import Distributed
from timecycle.training.objectives import OBJECTIVES, choose_clips, make_optimizer
from timecycle.training.precision import prepare_model

CASES = {
    "walk": ["--objective", "walk", "--crop-side", "128", "--width", "32", "--batchSize", "12"],
    "timecycle": ["--objective", "timecycle", "--frame-side", "128", "--patch-side", "56", "--batchSize", "2"],
}
OPTIONS = ["", "--channels-last", "--autocast", "--autocast --channels-last", "--checkpoint-activations", "--compile"]


def measure(words: list[str], steps: int) -> dict[str, float]:
    """Median seconds of a step after the first, MB that steps add, and the first step's loss."""
    settings = resolved(read_command_line(words)[0])
    torch.manual_seed(0)
    objective, distributed = OBJECTIVES[type(settings)], Distributed(0, 1, torch.device("cpu"))
    dataset = objective.dataset(settings, choose_clips(settings))
    batch = torch.utils.data.default_collate([dataset[0, index] for index in range(settings.batch)])
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    model = prepare_model(objective.model(settings), settings, distributed)
    optimizer = make_optimizer(settings, model)
    before = peak_memory_mb(distributed.device)["host"]
    seconds, losses = [], []
    for _ in range(steps + 1):
        start = time.process_time()
        loss = model(**tensors).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
        losses.append(loss.item())
    added = peak_memory_mb(distributed.device)["host"] - before
    return {"seconds": sorted(seconds[1:])[steps // 2], "mb": added, "loss": losses[0]}


def main() -> None:
    """Print a line an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case is not None:
        print(json.dumps(measure(json.loads(arguments.case), arguments.steps)))
        return
    for name in [arguments.only] if arguments.only else CASES:
        for option in OPTIONS:
            case = json.dumps([*CASES[name], "--synthetic-clips", "12", *option.split()])
            command = [sys.executable, "-m", "benchmarks.training_options", "--case", case]
            command += ["--threads", str(arguments.threads), "--steps", str(arguments.steps)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(
                f"{name:10} {option or 'plain':28} {found['seconds']:7.2f} s  {found['mb']:7.0f} MB  "
                f"loss {found['loss']:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
