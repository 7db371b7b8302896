"""How far propagation here agrees with the published programs: their recorded inputs and outputs, read and compared.

    python -m benchmarks.agreement --records FOLDER [--davis DAVIS]     # docs/protocols.md and README show the table

FOLDER holds `propagation/<protocol>_<input>.npz`, what the programs made of given features and a first mask, and
`timecycle/infer_<sequence>_<crop>.npz`, what TimeCycle's program made of DAVIS frames (hence --davis) with a network of
seeded weights. The files hold DAVIS-derived data and are not in the repository; tests/test_published_protocols.py,
tests/test_protocols.py and tests/test_propagation.py compare more of them. Results: benchmarks/results/agreement.json.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import ROOT
from timecycle.checkpoints.networks import load_encoder
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.models.encoder import Encoder, fold_batch_norm
from timecycle.propagation.frames import preprocess
from timecycle.propagation.labels import index_mask, soft_labels
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS, protocol
from timecycle.propagation.video import propagate
from timecycle.provenance import commit

RESULTS = ROOT / "benchmarks" / "results" / "agreement.json"


def apart(soft: np.ndarray, recorded: np.ndarray, masks: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """How soft labels and masks [F, H, W] differ from the recorded ones; of the predicted frames, from frame 1 on."""
    return {
        "frames": len(masks),
        "pixels": int(masks.size),
        "pixels apart": int(np.count_nonzero(masks != expected)),
        "soft apart": float(np.abs(soft - recorded).max()),
        "soft apart, mean": float(np.abs(soft - recorded).mean()),
    }


def recorded_preset(path: Path) -> dict[str, Any]:
    """One record of given features: the preset as it is, or with the record's own context and radius ("_short")."""
    recorded = np.load(path)
    rules = json.loads(str(recorded["params"]))
    inputs = np.load(path.parent / rules["input"])
    overrides = {"length": rules["n_context"], "radius": rules["radius"]} if path.stem.endswith("_short") else {}
    features = torch.from_numpy(inputs["features"].astype(np.float32))
    found = propagate(features, inputs["first_label"], rules["protocol"], **overrides)
    return {
        "protocol": rules["protocol"],
        "published settings": not overrides,
        **apart(found.soft[1:].numpy(), recorded["soft"][1:], found.masks[1:], recorded["hard"][1:]),
    }


def write_recorded_checkpoint(folder: Path, path: Path) -> None:
    """Write the checkpoint of TimeCycle's records, whose weights follow from a seed, in the release's layout."""
    spec = importlib.util.spec_from_file_location("seeded", folder / "seeded.py")
    assert spec
    assert spec.loader
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    shapes = json.loads((folder / "state_dict_keys.json").read_text())["test_model"]
    torch.save({"epoch": 14, "state_dict": seeded.seeded_state_dict(shapes, 1234)}, path)


def recorded_network(folder: Path) -> Encoder:
    """The network of TimeCycle's records."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "checkpoint.pth.tar"
        write_recorded_checkpoint(folder, path)
        network = fold_batch_norm(load_encoder(path))
    assert isinstance(network, Encoder)
    return network


def recorded_program(path: Path, network: Encoder, davis: Path) -> dict[str, Any]:
    """One record of TimeCycle's program, from frames to masks."""
    _, sequence, crop = path.stem.split("_")
    side = int(crop)
    recorded, rules = np.load(path), protocol("timecycle", side=side, l2=False)
    images = sorted((davis / "JPEGImages" / "480p" / sequence).glob("*.jpg"))[: len(recorded["idx_crop"])]
    first = read_mask(davis / "Annotations" / "480p" / sequence / "00000.png")
    labels = soft_labels(first, rules, (side // 8, side // 8), (side, side))
    propagator, soft = LabelPropagator(rules), []
    for image in images:
        features = network(preprocess(read_rgb(image), rules)[None])[0]
        soft.append(propagator.step(features) if soft else propagator.start(features, torch.from_numpy(labels.soft)))
    masks = [index_mask(one, labels.ids, rules, (side, side), first.shape) for one in soft[1:]]
    expected = [read_mask(path.parent / f"masks_{crop}" / sequence / f"{i:05d}.png") for i in range(1, len(soft))]
    maps = recorded["pred_norm"].transpose(0, 3, 1, 2)
    found = apart(torch.stack(soft[1:]).numpy(), maps[1:], np.stack(masks), np.stack(expected))
    return {"protocol": "timecycle", "published settings": True, **found}


@torch.inference_mode()
def measured(folder: Path, davis: Path | None) -> dict[str, Any]:
    """All records by name."""
    records = {}
    for path in sorted((folder / "propagation").glob("*_*.npz")):
        if path.stem.split("_")[0] in PRESETS:
            records[path.stem] = recorded_preset(path)
    if davis:
        network = recorded_network(folder / "timecycle")
        for path in sorted((folder / "timecycle").glob("infer_*.npz")):
            records[f"timecycle_{path.stem.removeprefix('infer_')}"] = recorded_program(path, network, davis)
    return records


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="folder of the published programs' records")
    parser.add_argument("--davis", type=Path, help="folder in DAVIS-2017 layout, for TimeCycle's records")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = measured(arguments.records, arguments.davis)
    about = {"commit": commit(7) or "unknown", "torch": torch.__version__}
    RESULTS.write_text(json.dumps(about | {"records": records}, indent=1) + "\n")
    for name, record in records.items():
        print(f"{name}: {record['pixels apart']} of {record['pixels']} pixels, soft labels {record['soft apart']:.1e}")


if __name__ == "__main__":
    main()
