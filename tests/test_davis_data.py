"""DAVIS sequences on disk: both kinds of list, and all that is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.task_cases import empty, remove, write
from timecycle.data.clips import listed_clips
from timecycle.data.images import open_image, read_rgb, shown_size
from timecycle.data.masks import mask_reading, read_mask, write_mask
from timecycle.data.sequences import read_filelist
from timecycle.errors import InputError
from timecycle.evaluation.davis.layout import read_davis, sequence_names

FRAMES, MASKS = "JPEGImages/480p/first", "Annotations/480p/first"


def frames(root: Path, name: str = "first") -> Path:
    return root / "JPEGImages" / "480p" / name


def masks(root: Path, name: str = "first") -> Path:
    return root / "Annotations" / "480p" / name


def test_sequences_come_in_the_order_of_the_list(small_davis: Path):
    (small_davis / "ImageSets" / "2017" / "val.txt").write_text("second\n\nfirst\n")
    found = read_davis(small_davis)
    assert [sequence.name for sequence in found] == ["second", "first"]
    assert [path.name for path in found[0].frames] == [f"{i:05d}.jpg" for i in range(4)]
    assert found[0].scored
    assert [sequence.name for sequence in read_davis(small_davis, names=["first"])] == ["first"]


def test_a_sequence_with_its_first_annotation_only_is_not_scored(small_davis: Path):
    for path in sorted(masks(small_davis).glob("*.png"))[1:]:
        path.unlink()
    assert [sequence.scored for sequence in read_davis(small_davis)] == [False, True]


def test_filelist_takes_absolute_and_relative_folders(small_davis: Path):
    listing = small_davis / "list.txt"
    listing.write_text(
        f"{frames(small_davis)}/ {masks(small_davis)}/\n\nJPEGImages/480p/second Annotations/480p/second\n"
    )
    assert [sequence.name for sequence in read_filelist(listing)] == ["first", "second"]
    assert [sequence.name for sequence in read_filelist(listing, names=["second"])] == ["second"]


def replace_annotation(root: Path, mask: np.ndarray) -> None:
    write_mask(masks(root) / "00000.png", mask)


BLACK_AND_WHITE = np.eye(48, 64, dtype=np.uint8) * 255


def small_annotation(root: Path) -> None:
    replace_annotation(root, np.ones((20, 30), np.uint8))


def small_frame(root: Path) -> None:
    Image.new("RGB", (10, 10)).save(frames(root) / "00003.jpg")


def truncated_annotation(root: Path) -> None:
    path = masks(root) / "00000.png"
    path.write_bytes(path.read_bytes()[:-40])


def move(name: str, target: str):
    return lambda root: (root / name).rename(root / target)


BAD = {
    "no folder": (remove("."), "is not a folder; expected one in DAVIS layout"),
    "no list": (move("ImageSets/2017/val.txt", "ImageSets/2017/train.txt"), "train"),
    "empty list": (write("ImageSets/2017/val.txt", "\n"), "val.txt is empty"),
    "no frames folder": (remove(FRAMES), f"{FRAMES} does not exist"),
    "no frames": (empty(FRAMES), "first holds no frames"),
    "no annotations folder": (remove(MASKS), f"{MASKS} does not exist"),
    "no annotations": (empty(MASKS), "first holds no annotations"),
    "no first annotation": (remove(f"{MASKS}/00000.png"), "first/00000.png does not exist"),
    "a frame missing": (remove(f"{FRAMES}/00002.jpg"), "holds 4 annotations for 3 frames"),
    "an annotation missing": (remove(f"{MASKS}/00002.png"), "holds 3 annotations for 4 frames"),
    "other names": (move(f"{FRAMES}/00002.jpg", f"{FRAMES}/00009.jpg"), "00003.jpg has no annotation"),
    "annotation of another size": (small_annotation, "00000.png is 30 x 20; expected 64 x 48 like"),
    "frame of another size": (small_frame, "00003.jpg is 10 x 10; expected 64 x 48 like"),
    "frame that is no image": (write(f"{FRAMES}/00001.jpg", "?"), "00001.jpg cannot be read"),
    "annotation cut off": (truncated_annotation, "00000.png is damaged or truncated"),
    "annotation 0/255": (lambda root: replace_annotation(root, BLACK_AND_WHITE), "--remap-255"),
}


@pytest.mark.parametrize(("damage", "said"), BAD.values(), ids=BAD.keys())
def test_bad_folders_are_refused(small_davis: Path, damage, said):
    damage(small_davis)
    with raises_input_error(said, str(small_davis)):
        read_davis(small_davis)


def test_black_and_white_annotations_can_be_remapped(small_davis: Path):
    replace_annotation(small_davis, BLACK_AND_WHITE)
    assert len(read_davis(small_davis, masks=mask_reading(remap_255=True))) == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("JPEGImages/480p/first\n", "line 1 has 1 words.*in quotes"),
        ("JPEGImages/480p/first Annotations/480p/first\n" * 2, "line 2 names a second sequence first"),
        ("JPEGImages/480p/third Annotations/480p/third\n", "third does not exist"),
    ],
)
def test_bad_filelists_are_refused(small_davis: Path, lines, said):
    listing = small_davis / "list.txt"
    if lines is not None:
        listing.write_text(lines)
    with pytest.raises(InputError, match=said):
        read_filelist(listing)


def test_an_unknown_sequence_is_named_with_the_known_ones(small_davis: Path):
    with pytest.raises(InputError, match=r"third is not in .* first, second"):
        read_davis(small_davis, names=["third"])


def rename(root: Path, name: str, stem) -> None:
    """Rename the frames and annotations of a sequence by their numbers."""
    for folder in (frames(root, name), masks(root, name)):
        for path in sorted(folder.iterdir(), reverse=True):
            path.rename(path.with_name(f"{stem(int(path.stem))}{path.suffix}"))


@pytest.mark.parametrize("stem", [lambda i: f"{i + 8}", lambda i: f"frame{i + 8}", lambda i: f"a{i + 8}_x1"])
def test_files_are_in_natural_order(small_davis: Path, stem):
    rename(small_davis, "first", stem)
    sequence = read_davis(small_davis)[0]
    assert [path.stem for path in sequence.frames] == [stem(i) for i in range(4)]
    assert [path.stem for path in sequence.annotations] == [stem(i) for i in range(4)]


@pytest.mark.parametrize("name", ["mask.png", "00000.png"])
def test_a_mask_among_the_frames_is_skipped(small_davis: Path, name):
    shutil.copy(masks(small_davis) / "00000.png", frames(small_davis) / name)
    sequence = read_davis(small_davis)[0]
    assert [path.name for path in sequence.frames] == [f"{i:05d}.jpg" for i in range(4)]
    assert [note for note in sequence.notes if name in note and "skipped" in note]


@pytest.mark.parametrize("dark", [True, False])
def test_a_frame_of_another_format_among_the_others_is_read(small_davis: Path, dark):
    path = frames(small_davis) / "00002.jpg"
    with Image.open(path) as image:
        (Image.new("RGB", image.size) if dark else image.quantize(256)).save(path.with_suffix(".png"))
    path.unlink()
    found = read_davis(small_davis)[0]
    assert [path.name for path in found.frames] == ["00000.jpg", "00001.jpg", "00002.png", "00003.jpg"]
    assert found.notes == ()


def test_twelve_bit_frames_in_sixteen_bits_are_noted(small_davis: Path):
    for path in frames(small_davis).iterdir():
        with Image.open(path) as image:
            Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 16).save(path.with_suffix(".png"))
        path.unlink()
    (note,) = read_davis(small_davis)[0].notes
    assert "00000.png has no values above" in note


def test_two_frames_with_the_same_stem_are_refused(small_davis: Path):
    with Image.open(frames(small_davis) / "00001.jpg") as image:
        image.save(frames(small_davis) / "00001.png")
    with pytest.raises(InputError, match=r"00001\.(png|jpg) and 00001\.(png|jpg) have the same name"):
        read_davis(small_davis)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".JPEG"])
def test_frames_of_other_formats(small_davis: Path, suffix):
    for path in sorted(frames(small_davis).iterdir()):
        with Image.open(path) as image:
            pixels = np.array(image)
            image.save(path.with_suffix(suffix), **({"lossless": True} if suffix == ".webp" else {}))
        path.unlink()
    found = read_davis(small_davis)[0].frames
    assert [path.name for path in found] == [f"{i:05d}{suffix}" for i in range(4)]
    if suffix != ".JPEG":
        np.testing.assert_array_equal(read_rgb(found[3]), pixels)


TURNS = {
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_exif_orientation_of_frames_is_applied(tmp_path, orientation, suffix):
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[:10, :20], shown[30:, :8] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(np.ascontiguousarray(TURNS[orientation](shown))).save(path, exif=exif, quality=100, subsampling=0)
    assert np.abs(read_rgb(path).astype(int) - shown).mean() < 3
    with open_image(path) as image:
        assert shown_size(image) == (64, 48)


def test_a_frame_rotated_by_its_orientation_must_fit_its_mask(small_davis: Path):
    exif = Image.Exif()
    exif[274] = 6
    for path in frames(small_davis).iterdir():
        with Image.open(path) as image:
            image.save(path, exif=exif)
    with pytest.raises(InputError, match=r"00000\.png is 64 x 48; expected 48 x 64 like .*00000\.jpg"):
        read_davis(small_davis)


def test_gray_frames_of_more_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
    wanted = np.round(ramp * 255).astype(int)
    Image.fromarray(np.round(ramp * 65535).astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(np.round(ramp * 65535).astype(np.int32)).save(tmp_path / "sixteen.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("sixteen.png", "sixteen.tif", "float.tif"):
        found = read_rgb(tmp_path / name)
        assert found.shape == (48, 64, 3)
        assert np.abs(found.astype(int) - wanted[..., None]).max() <= 1
    Image.fromarray(ramp.astype(np.float32) * 1000).save(tmp_path / "large.tif")
    with pytest.raises(InputError, match=r"large\.tif holds values from 0 to 1000; expected 0 to 1"):
        read_rgb(tmp_path / "large.tif")


ENCODED = {
    "byte-order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), None),
    "UTF-16": (lambda text: text.encode("utf-16"), None),
    "UTF-16, the other order": (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), None),
    "carriage returns": (lambda text: text.replace("\n", "\r\n").encode(), None),
    "Latin-1": (lambda text: text.encode() + "caf\xe9\n".encode("latin-1"), "no UTF-8 text .line 3"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "null characters"),
}


@pytest.mark.parametrize(("encoded", "said"), ENCODED.values(), ids=ENCODED.keys())
def test_encodings_of_lists(small_davis: Path, encoded, said):
    root = small_davis
    lists = {
        root / "ImageSets/2017/val.txt": ("second\nfirst\n", lambda: read_davis(root)),
        root / "list.txt": (
            "".join(f"{frames(root, name)} {masks(root, name)}\n" for name in ("second", "first")),
            lambda: read_filelist(root / "list.txt"),
        ),
    }
    for path, (text, read) in lists.items():
        path.write_bytes(encoded(text))
        if said is None:
            assert [sequence.name for sequence in read()] == ["second", "first"]
            continue
        with pytest.raises(InputError, match=rf"{path.name} .*{said}"):
            read()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('"{0}" "{1}"', "my davis"),
        ("'{0}' '{1}'", "my davis"),
        ("{0}\t{1}", "my davis"),
        ("{0} {1}", "davis's"),
        ('"{0}" "{1}"', "my davis's"),
    ],
)
def test_folders_with_blanks_are_quoted_or_separated_by_tabs(small_davis: Path, line, name):
    root = small_davis.rename(small_davis.with_name(name))
    (root / "list.txt").write_text(line.format(frames(root), masks(root)) + "\n")
    assert [sequence.name for sequence in read_filelist(root / "list.txt")] == ["first"]


def test_folders_of_one_name_are_named_by_their_paths(small_davis: Path):
    other = small_davis.with_name("other")
    shutil.copytree(small_davis, other)
    folders = ((small_davis, "first"), (other, "first"), (other, "second"))
    (small_davis / "list.txt").write_text("".join(f"{frames(*each)} {masks(*each)}\n" for each in folders))
    found = read_filelist(small_davis / "list.txt")
    expected = [f"{small_davis.name}-JPEGImages-480p-first", "other-JPEGImages-480p-first", "second"]
    assert [sequence.name for sequence in found] == expected
    assert [sequence.frames[0].is_relative_to(other) for sequence in found] == [False, True, True]
    assert len(read_filelist(small_davis / "list.txt", ["other-JPEGImages-480p-first"])) == 1


def test_quoted_names_and_paths_in_a_list(small_davis: Path):
    (small_davis / "ImageSets/2017/val.txt").write_text('"first"\nJPEGImages/480p/second/\n')
    assert [sequence.name for sequence in read_davis(small_davis)] == ["first", "second"]


def test_davis_2016_lists_frames_and_merges_objects(small_davis: Path):
    (small_davis / "ImageSets" / "480p").mkdir()
    lines = [f"/JPEGImages/480p/{n}/{i:05d}.jpg /Annotations/480p/{n}/{i:05d}.png\n" for n in "ab" for i in range(2)]
    (small_davis / "ImageSets" / "480p" / "val.txt").write_text("".join(lines).replace("/b/", "/first/"))
    with pytest.raises(InputError, match="480p/a does not exist"):
        read_davis(small_davis, year="2016")
    replace_annotation(small_davis, np.kron(np.array([[0, 255], [7, 0]], np.uint8), np.ones((24, 32), np.uint8)))
    (sequence,) = read_davis(small_davis, year="2016", names=["first"])
    found = read_mask(sequence.annotations[0], sequence.masks)
    np.testing.assert_array_equal(found, np.kron(np.array([[0, 1], [1, 0]]), np.ones((24, 32))))


def listed(root: Path, *lines: str) -> Path:
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(lines))
    return root


BAD_NAMES = ["..", "../evil", ".", ".hidden", "a\\b", "x" * 300, "a\x01b", "overlays", "results.json", "/", "a/.."]


@pytest.mark.parametrize("name", [*BAD_NAMES, "/a/.."])
def test_names_in_a_list_are_single_folder_names(tmp_path: Path, name):
    with raises_input_error(match=r"val\.txt"):
        sequence_names(listed(tmp_path, "bear", name))


@pytest.mark.parametrize("name", ["a b", "**", "[a]", "caf\u00e9"])
def test_other_names_are_kept(tmp_path: Path, name):
    assert sequence_names(listed(tmp_path, name)) == [name]


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "x" * 300, ""])
@pytest.mark.parametrize("option", ["set", "year"])
def test_sets_and_years_are_single_names(tmp_path: Path, option, name):
    with pytest.raises(InputError, match=f"^--{option}: the name"):
        sequence_names(listed(tmp_path, "bear"), *({"set": (name,), "year": ("val", name)}[option]))


@pytest.mark.parametrize("line", ["{0}/.. {0}", "{0}/overlays {0}", "{0}/.a {0}"])
def test_sequences_of_a_filelist_have_single_folder_names(tmp_path: Path, line):
    (tmp_path / "list.txt").write_text(line.format(tmp_path))
    with raises_input_error(match=r"list\.txt: the name"):
        read_filelist(tmp_path / "list.txt")


@pytest.mark.parametrize("line", ["x" * 300 + " b", "x" * 5000 + " b", "a/" * 600 + " b"])
def test_folders_with_long_names_are_refused(tmp_path: Path, line):
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(
        InputError, match=r"does not exist; expected a folder|expected the name of one|characters; expected"
    ):
        read_filelist(tmp_path / "list.txt")


@pytest.mark.parametrize("fps", ["NaN", "Infinity", "0", "-1", "1e9", "1" + "0" * 400, "9" * 5000, '"12"', "[" * 10**5])
def test_a_prepared_folder_stores_its_rate_and_invalid_rates_are_ignored(small_davis: Path, fps):
    assert read_davis(small_davis)[0].fps is None
    for text, wanted in ((fps, None), ("12.5", 12.5)):
        (frames(small_davis) / ".prepared.json").write_text('{"rules": {"fps": ' + text + "}}")
        (sequence,) = read_davis(small_davis, names=["first"])
        assert sequence.fps == wanted


def test_clips_of_folders_with_long_names_are_missing(tmp_path: Path):
    (tmp_path / "list.txt").write_text("x" * 300 + " 9")
    (clip,) = listed_clips(tmp_path / "list.txt")
    with pytest.raises(InputError, match="does not exist; expected 9 frames"):
        clip.read([0])
