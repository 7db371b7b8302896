"""How evenly the CUDA scan's blocks share the work at published shapes: python -m benchmarks.cuda_balance.

Patches of keys in all, the least and most per block, and the most if whole slots were dealt out in turn to the
multiprocessors. Writes benchmarks/results/cuda_balance.json.
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.work_cases import PUBLISHED, load, plan_of, work_items

RESULTS = Path(__file__).parent / "results" / "cuda_balance.json"


def main() -> None:
    """Print the table, and write it."""
    library = load()
    rows = []
    print("grid, slots, neighborhood, targets, chips: patches, least, most, lists per query; whole slots as the unit")
    for grid, slots, neighborhood in PUBLISHED:
        for targets in (1, 16):
            frames = torch.arange(slots).expand(targets, slots).contiguous()
            multiplicity = torch.tensor([1, 0 if neighborhood else 1]).expand(targets, slots, 2)
            joint = neighborhood is not None
            plan = plan_of(frames, multiplicity, grid, neighborhood, joint)
            for chip in (132, 108, 114, 78):
                found, work = work_items(library, plan, chip)
                shares = np.bincount(found[:, 0], weights=found[:, 5] - found[:, 4], minlength=chip).astype(int)
                seen = np.diff(work.before.numpy())
                units = np.repeat(np.tile(seen, targets), slots)
                whole = max(units[i::chip].sum() for i in range(chip))
                row = {
                    "grid": grid,
                    "slots": slots,
                    "region": None if neighborhood is None else neighborhood.shape,
                    "targets": targets,
                    "multiprocessors": chip,
                    "patches": int(shares.sum()),
                    "least": int(shares.min()),
                    "most": int(shares.max()),
                    "lists": work.lists,
                    "whole slots": int(whole),
                }
                rows.append(row)
                print(*row.values())
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
