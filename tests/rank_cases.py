"""A program in two processes of torch.distributed: the ranks of a test."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, os, sys, torch, timecycle
from tests.test_evaluate_davis import patches

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://{folder}/meet", rank=rank, world_size=2)
{body}
open("{folder}/" + str(rank), "w").write(result)
torch.distributed.barrier()
os._exit(0)  # gloo's threads may abort an interpreter that exits, which is not tested here
"""


def run_ranks(folder: Path, body: str) -> list[str]:
    """Run a body that assigns `result`, a text, on two ranks; the result of each."""
    program = folder / "rank.py"
    program.write_text(PROGRAM.format(folder=folder, body=textwrap.dedent(body)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ranks = [subprocess.Popen([sys.executable, program, str(rank)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return [(folder / str(rank)).read_text() for rank in range(2)]
