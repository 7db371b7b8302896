"""Video sequences in DAVIS-2017 layout, or listed as the original takes them, checked before any work begins."""

from dataclasses import dataclass
from pathlib import Path

from timecycle.errors import InputError
from timecycle.files import open_image
from timecycle.masks import check_not_black_and_white, read_mask

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Sequence:
    """One video: its frames in order, and the annotations of all of them or of the first alone."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]

    @property
    def scored(self) -> bool:
        """Whether every frame is annotated, so that masks can be graded."""
        return len(self.annotations) == len(self.frames)


def read_davis(
    root: Path, image_set: str = "val", year: str = "2017", names: list[str] | None = None, remap_255: bool = False
) -> list[Sequence]:
    """The sequences of a folder in DAVIS layout, in the order of its list.

    root holds ImageSets/<year>/<image_set>.txt, JPEGImages/480p/<name>/*.jpg and Annotations/480p/<name>/*.png.
    names: only these. Raises InputError naming the file for anything missing or not fitting together.
    """
    listed = sequence_names(root, image_set, year)
    for name in names or []:
        if name not in listed:
            raise InputError(f"--sequences {name} is not in the set {image_set}; expected some of {', '.join(listed)}")
    return [
        _read_sequence(name, root / "JPEGImages" / "480p" / name, annotations_folder(root, name), remap_255)
        for name in listed
        if not names or name in names
    ]


def sequence_names(root: Path, image_set: str = "val", year: str = "2017") -> list[str]:
    """The names listed in root/ImageSets/<year>/<image_set>.txt. Raises InputError if there is no such list."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected one in DAVIS layout")
    listing = root / "ImageSets" / year / f"{image_set}.txt"
    if not listing.is_file():
        there = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise InputError(f"{listing} does not exist; expected one sequence name a line (sets that are there: {there})")
    names = [line.strip() for line in listing.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    if not names:
        raise InputError(f"{listing} is empty; expected one sequence name a line")
    return list(dict.fromkeys(names))


def annotations_folder(root: Path, name: str) -> Path:
    """Where the annotations of a sequence are."""
    return root / "Annotations" / "480p" / name


def annotation_files(folder: Path) -> list[Path]:
    """The annotations of a sequence in order. Raises InputError if there are none."""
    return files_in(folder, (".png",), "annotations")


def read_filelist(path: Path, names: list[str] | None = None, remap_255: bool = False) -> list[Sequence]:
    """The sequences of a list with lines `frames-folder annotations-folder`, as the original program takes it.

    Relative folders are looked for from the working directory, then from the list's own folder. A sequence is named
    after its frames' folder. Raises InputError naming the list and line, or the file, for anything that does not fit.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a list with lines 'frames-folder annotations-folder'")
    sequences: dict[str, tuple[Path, Path]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        folders = [Path(word) for word in line.split()]
        if len(folders) != 2:
            raise InputError(
                f"{path} line {number} has {len(folders)} words; expected a frames folder and an annotations folder"
            )
        frames, annotations = (f if f.is_absolute() or f.is_dir() else path.parent / f for f in folders)
        if frames.name in sequences:
            raise InputError(f"{path} line {number} names a second sequence {frames.name}; expected each name once")
        sequences[frames.name] = (frames, annotations)
    if not sequences:
        raise InputError(f"{path} is empty; expected lines 'frames-folder annotations-folder'")
    for name in names or []:
        if name not in sequences:
            raise InputError(f"--sequences {name} is not in {path}; expected some of {', '.join(sequences)}")
    return [
        _read_sequence(name, frames, annotations, remap_255)
        for name, (frames, annotations) in sequences.items()
        if not names or name in names
    ]


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Files of a kind, sorted; names with a leading dot are leftovers of file managers and killed runs.

    Raises InputError if the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected a folder of {what}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no {what}; expected files ending in {' or '.join(suffixes)}")
    return files


def _read_sequence(name: str, frames_folder: Path, masks_folder: Path, remap_255: bool) -> Sequence:
    """List and check one sequence: names and counts pair up, sizes agree, the first annotation can be used."""
    frames = files_in(frames_folder, FRAME_SUFFIXES, "frames")
    annotations = annotation_files(masks_folder)
    if annotations[0].stem != frames[0].stem:
        raise InputError(
            f"{masks_folder / (frames[0].stem + '.png')} does not exist; expected the first frame's annotation"
        )
    if len(annotations) not in (1, len(frames)):
        raise InputError(
            f"{masks_folder} holds {len(annotations)} annotations for {len(frames)} frames in {frames_folder}; "
            "expected one for every frame, or for the first alone"
        )
    for frame, annotation in zip(frames, annotations, strict=False):
        if frame.stem != annotation.stem:
            raise InputError(f"{frame} has no annotation {masks_folder / (frame.stem + '.png')}; expected equal names")
    with open_image(frames[0]) as image:
        size = image.size
    for path in (*frames[1:], *annotations):
        with open_image(path) as image:
            if image.size != size:
                raise InputError(
                    f"{path} is {image.size[0]} x {image.size[1]}; expected {size[0]} x {size[1]} like {frames[0]}"
                )
    first = read_mask(annotations[0], remap_255)
    if not remap_255:
        check_not_black_and_white(annotations[0], first)
    return Sequence(name, tuple(frames), tuple(annotations))
