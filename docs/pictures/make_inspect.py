"""The picture of the guide to `timecycle inspect`: an object of a synthetic video that takes another's place.

python -m docs.pictures.make_inspect     # inspect.webp
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from timecycle import cli
from timecycle.data.synthetic import make_davis
from timecycle.evaluation.davis.inspection import Inspection, inspect_run

PICTURE = Path(__file__).parent / "inspect.webp"
SEQUENCE, FRAMES = "made-crossing", 24
OPTIONS = ("--protocol", "dino", "--cropSize", "240", "--override", "multiple=8")
QUALITY = 80


def inspected(folder: Path) -> Inspection:
    """Evaluate the video in a folder, and inspect its worst frame."""
    davis = make_davis(folder / "davis", sequences=1, frames=FRAMES)
    cli.run(["evaluate", "--davis", str(davis), *OPTIONS, "--save_path", str(folder / "run"), "--quiet"])
    return inspect_run(folder / "run", SEQUENCE)


def main() -> None:
    """Evaluate, inspect and write the picture; print the table that the guide shows."""
    with tempfile.TemporaryDirectory() as folder:
        found = inspected(Path(folder))
    Image.fromarray(found.picture).save(PICTURE, quality=QUALITY, method=6)
    print(found.table())
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
