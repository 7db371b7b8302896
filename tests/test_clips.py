"""Clips: TimeCycle's list, video files as FFmpeg writes them, synthetic video; and how damage is reported."""

from functools import partial
from itertools import product
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from tests.task_cases import remove
from tests.video_cases import spoil, write_video
from timecycle.data.clips import Cache, VideoClip, listed_clips, nearest_to_grid, synthetic_clips, video_clips
from timecycle.data.synthetic import SEQUENCES, Scene
from timecycle.errors import InputError

BITS = 6


def numbered(number, size=(64, 48)):
    """An image, RGB uint8, that shows a number as black and white bars, which every codec keeps apart."""
    width, height = size
    bars = (number >> np.arange(BITS) & 1) * 255
    row = bars[np.arange(width) * BITS // width].astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(images):
    """The numbers that images show."""
    found = []
    for image in images:
        columns = image.mean((0, 2))
        bars = [columns[np.arange(len(columns)) * BITS // len(columns) == bit].mean() for bit in range(BITS)]
        found.append(sum(1 << bit for bit, level in enumerate(bars) if level > 127))
    return found


numbered_video = partial(write_video, rate=30, frames=60, options={}, shown=numbered)


def test_frames_nearest_to_a_twelfth_of_a_second():
    assert nearest_to_grid(np.arange(60) / 24).tolist() == list(range(0, 60, 2))
    assert nearest_to_grid(np.arange(31) / 30).tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30]
    for slow in (1, 8, 10, 12):
        assert nearest_to_grid(np.arange(20) / slow).tolist() == list(range(20))
    assert nearest_to_grid(np.zeros(1)).tolist() == [0]
    uneven = np.array([0, 0.01, 0.02, 0.3, 0.31, 0.32, 0.33, 2.0])
    assert nearest_to_grid(uneven).tolist() == [0, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("name", "codec", "pix", "size"),
    [
        ("h264.mp4", "libx264", "yuv420p", (64, 48)),
        ("h264.avi", "libx264", "yuv420p", (64, 48)),  # stored in decoding order, without timestamps
        ("h264.ts", "libx264", "yuv420p", (64, 48)),  # one key frame, which a seek misses
        ("raw.h264.MOV", "mjpeg", "yuvj420p", (63, 41)),
        ("mpeg4.avi", "mpeg4", "yuv420p", (65, 47)),
        ("gray.mkv", "ffv1", "gray", (33, 31)),
        ("vp8.webm", "libvpx", "yuv420p", (64, 48)),
    ],
)
def test_a_video_file_at_twelve_frames_a_second(tmp_path, name, codec, pix, size):
    path = numbered_video(tmp_path / name, codec, pix, size=size)
    (clip,) = video_clips(tmp_path, cache_bytes=0)
    assert (clip.name, clip.length) == (str(path), 24)
    images = clip.read([13, 2, 13, 23])
    assert (images.dtype, images.shape) == (np.uint8, (4, size[1], size[0], 3))
    assert numbers(images) == [32, 5, 32, 57]
    (kept,) = video_clips(tmp_path, cache_bytes=1 << 30)
    np.testing.assert_array_equal(kept.read([13, 2, 13, 23]), images)
    assert numbers(kept.read(range(24))) == nearest_to_grid(np.arange(60) / 30).tolist()


def test_a_seek_finds_the_exact_frame(tmp_path, monkeypatch):
    """With a key frame every twelve frames, and B-frames between them."""
    path = numbered_video(tmp_path / "a.mp4", rate=12, options={"g": "12", "bf": "3"})
    whole = VideoClip(path, Cache(1 << 30)).read(range(60))
    clip, images = VideoClip(path, Cache(0)), VideoClip._images
    attempts = []
    monkeypatch.setattr(VideoClip, "_images", lambda *_, seek: attempts.append(seek) or images(*_, seek=seek))
    for index in range(60):
        np.testing.assert_array_equal(clip.read([index])[0], whole[index])
    assert all(attempts)  # no seek failed
    spoil(path, 0)
    np.testing.assert_array_equal(clip.read([50])[0], whole[50])  # the first frame was not decoded


def test_a_program_stream_is_read_from_its_start(tmp_path):
    """FFmpeg guesses the timestamps of its frames, differently after a seek."""
    path = numbered_video(tmp_path / "a.mpg", "mpeg2video", rate=24, options={"g": "10", "bf": "2"})
    whole = VideoClip(path, Cache(1 << 30)).read(range(30))
    clip = VideoClip(path, Cache(0))
    for index in range(30):
        np.testing.assert_array_equal(clip.read([index])[0], whole[index])


def test_uneven_times(tmp_path):
    times = [0, 0.01, 0.02, 0.3, 0.31, 0.32, 0.33, 2.0]
    path = numbered_video(tmp_path / "a.mkv", "ffv1", "gray", frames=8, times=times)
    assert numbers(VideoClip(path, Cache(0)).read(range(5))) == [0, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("size", "scaled"), [((640, 480), (256, 341)), ((300, 520), (444, 256)), ((256, 300), (300, 256))]
)
def test_the_short_side_is_at_most_256(tmp_path, size, scaled):
    path = numbered_video(tmp_path / "a.mov", "png", "rgb24", frames=2, rate=12, size=size)
    found = VideoClip(path, Cache(0)).read([1])[0]
    expected = cv2.resize(numbered(1, size), scaled[::-1], interpolation=cv2.INTER_AREA)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=2)


def test_an_edit_list_is_followed(tmp_path):
    path = numbered_video(tmp_path / "a.mp4", rate=12, options={"g": "24"})
    data = path.read_bytes()
    at = data.index(b"elst") + 12  # the edit's length in ms, then its start in the media
    start = int.from_bytes(data[at + 4 : at + 8], "big") + 18 * 1024
    path.write_bytes(data[:at] + (2000).to_bytes(4, "big") + start.to_bytes(4, "big") + data[at + 8 :])
    clip = VideoClip(path, Cache(0))
    assert clip.length == 24
    assert numbers(clip.read([0, 7, 23])) == [18, 25, 41]


def test_files_with_the_suffix_of_a_video_are_opened_lazily(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.mp4", "deep/a.WebM", "deep/er/c.mov", ".hidden.mp4"):
        (tmp_path / name).touch()
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("a file was opened"))
    clips = video_clips(tmp_path, 1 << 20)
    assert [Path(clip.name).name for clip in clips] == ["b.mp4", "a.WebM", "c.mov"]


def test_small_sets_are_decoded_once(tmp_path, monkeypatch):
    for name in "ab":
        numbered_video(tmp_path / f"{name}.mp4", frames=24, rate=12)
    clips = video_clips(tmp_path, cache_bytes=24 * 48 * 64 * 3 + 1000)
    first = [clip.read([3, 4]) for clip in clips]
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").unlink()
    np.testing.assert_array_equal(clips[0].read([3, 4]), first[0])
    with pytest.raises(InputError):  # the second did not fit
        clips[1].read([3, 4])


@pytest.mark.parametrize("kept", [0, 44])  # FFmpeg refuses the first and conceals the second
def test_a_damaged_frame_does_not_affect_others(tmp_path, monkeypatch, kept):
    """Which samples can be read must not depend on whether a process has room for the whole clip."""
    path = numbered_video(tmp_path / "a.mp4", "mpeg4", frames=24, rate=12)
    spoil(path, 20, kept)
    for room in (0, 1 << 30):
        (clip,) = video_clips(tmp_path, room)
        assert numbers(clip.read([0, 3])) == [0, 3]
        with pytest.raises(InputError, match=r"a\.mp4 is damaged"):
            clip.read(range(clip.length))
    monkeypatch.setattr(VideoClip, "_whole", lambda clip: pytest.fail("the whole clip was decoded again"))
    assert numbers(clip.read([2])) == [2]


@pytest.mark.parametrize("room", [0, 1 << 30])
@pytest.mark.parametrize(
    ("kind", "kept"), [*product(["mp4", "faststart mp4", "avi", "webm"], [0.0, 0.001, 0.5]), ("faststart mp4", 0.99)]
)
def test_truncated_videos_are_refused_by_name(tmp_path, room, kind, kept):
    path = tmp_path / f"a.{kind.split()[-1]}"
    head_first = {"movflags": "faststart"} if "faststart" in kind else {}
    numbered_video(path, "libvpx" if kind == "webm" else "mpeg4", **head_first)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    (clip,) = video_clips(tmp_path, room)
    with pytest.raises(InputError) as refused:
        clip.read([0, clip.length - 1])
    assert str(refused.value).startswith((f"{path} is damaged ", f"{path} ends at "))
    assert "expected a" in str(refused.value)


def test_frames_beyond_the_end_are_refused(tmp_path):
    clip = VideoClip(numbered_video(tmp_path / "a.mp4", frames=5, rate=12), Cache(0))
    for indices in ([5], [-1], []):
        with pytest.raises(InputError, match=r"a\.mp4 was asked for frames .*; expected at least one, of 0 to 4"):
            clip.read(indices)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: video_clips(root / "none", 0), "none is not a folder; expected one with video files"),
        (lambda root: video_clips(root, 0), "holds no video files; expected some, such as .mp4 or .webm"),
        (lambda root: listed_clips(root / "none"), "none does not exist; expected a list of `folder frames` lines"),
        (lambda _: synthetic_clips(0, 5, 0), "0 synthetic clips of 5 frames with seed 0; expected 1, 1 and 0 or more"),
    ],
)
def test_sources_without_clips_are_refused(tmp_path, make, said):
    with raises_input_error(said):
        make(tmp_path)


def write_folder(folder, frames=3, mode="RGB"):
    folder.mkdir(parents=True)
    for i in range(frames):
        Image.fromarray(numbered(i, (96, 20))).convert(mode).save(folder / f"{i + 1:06d}.jpg")


def test_the_originals_list(tmp_path, monkeypatch):
    for name in ("one", "lists/two", "lists/a b", "three"):
        write_folder(tmp_path / name, mode="L" if name == "three" else "RGB")
    path = tmp_path / "lists" / "list.txt"
    path.write_bytes(f"{tmp_path}/one/ 3\r\n\r\n  \ntwo/ 3\na b/\t2\nthree 3".encode())
    monkeypatch.chdir(tmp_path)
    clips = listed_clips(path)
    assert [clip.length for clip in clips] == [3, 3, 2, 3]
    assert [Path(clip.name).name for clip in clips] == ["one", "two", "a b", "three"]
    for clip in clips:
        images = clip.read([1, 0, 1])
        assert images.shape == (3, 20, 96, 3)
        assert numbers(images) == [1, 0, 1]


@pytest.mark.parametrize("line", ["folder", "folder/ many", "folder/ -3", "12", " 7 ", "folder/ 3.5", "folder/ ３"])
def test_a_bad_line_of_a_list_is_refused(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"\n/a/ 3\n{line}\n", encoding="utf-8")
    with raises_input_error(f"{path}, line 3, is {line.strip()!r}; expected a folder and its number of frames"):
        listed_clips(path)


def test_an_empty_list_and_one_in_latin_1_are_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\n\n")
    with pytest.raises(InputError, match=r"list\.txt lists no clips; expected one `folder frames` a line"):
        listed_clips(path)
    path.write_bytes("/ä 3\n".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"list\.txt is no UTF-8 text \(line 1: .*; expected a list of `folder frames`"
    ):
        listed_clips(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "line",
    [
        "my clips/ä 猫/ 3",
        "my clips/ä 猫 3",
        '"my clips/ä 猫/" 3',
        "'my clips/ä 猫' 3",
        "my clips/ä 猫/\t3",
        '"my clips/ä 猫/"\t3',
        '  "my clips/ä 猫/"   3  ',
    ],
)
def test_folders_with_blanks_in_any_encoding(tmp_path, encoding, line):
    write_folder(tmp_path / "my clips" / "ä 猫")
    path = tmp_path / "list.txt"
    path.write_bytes(f"{line}\r\n\r\n{line}".encode(encoding))
    clips = listed_clips(path)
    assert [(clip.name, clip.length) for clip in clips] == [(str(tmp_path / "my clips" / "ä 猫"), 3)] * 2
    assert numbers(clips[1].read([2, 0])) == [2, 0]


def test_folders_with_quotes_in_their_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("""/it's a/ 3\n/it's 4\n"/it's a/" 5\n""")
    assert [(clip.name, clip.length) for clip in listed_clips(path)] == [("/it's a", 3), ("/it's", 4), ("/it's a", 5)]


def truncate(folder):
    path = folder / "000002.jpg"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("000003.jpg"), "000003.jpg does not exist; expected 3 frames in "),
        (remove("000002.jpg"), "000002.jpg does not exist; expected an image there"),
        (truncate, "000002.jpg is damaged or truncated"),
        (lambda folder: Image.new("L", (9, 9)).save(folder / "000002.jpg"), "folder holds frames of different sizes"),
    ],
)
def test_a_damaged_folder_is_refused_when_it_is_read(tmp_path, damage, said):
    write_folder(tmp_path / "folder")
    (tmp_path / "list.txt").write_text("folder 3\n")
    (clip,) = listed_clips(tmp_path / "list.txt")
    damage(tmp_path / "folder")
    with raises_input_error(said):
        clip.read([0, 1])


def test_synthetic_clips_are_rendered_lazily(monkeypatch):
    rendered = []
    frame = Scene.frame
    monkeypatch.setattr(Scene, "frame", lambda scene, time: rendered.append(time) or frame(scene, time))
    clips = synthetic_clips(len(SEQUENCES) + 1, 6, seed=3)
    assert [clip.length for clip in clips] == [6] * 6
    assert not rendered
    images = clips[0].read([4, 0, 4])
    assert (images.dtype, images.shape) == (np.uint8, (3, 256, 320, 3))
    assert rendered == [4, 0]
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] != images[1]).mean() > 0.5
    assert (clips[5].read([0]) != images[1]).mean() > 0.5
    np.testing.assert_array_equal(synthetic_clips(1, 6, seed=3)[0].read([4, 0, 4]), images)
    assert (synthetic_clips(1, 6, seed=4)[0].read([0]) != images[1]).mean() > 0.5
    assert len({clip.name for clip in clips}) == 6


def test_synthetic_clips_beyond_the_cache_are_rendered_again():
    (clip,) = synthetic_clips(1, 3, seed=0)
    expected = clip.read([0, 1, 2])
    clip._cache = Cache(256 * 320 * 3)
    np.testing.assert_array_equal(clip.read([0, 1, 2, 0]), expected[[0, 1, 2, 0]])
    assert len(clip._cache.held) == 1


def test_real_videos(shared):
    clips = video_clips(shared / "video", cache_bytes=0)
    assert len(clips) == len(list((shared / "video").glob("*.mp4")))
    for clip in clips[::6]:
        images = clip.read([clip.length - 1, 0])
        assert images.shape[0] == 2
        assert min(images.shape[1:3]) <= 256
        assert images.std() > 5


@pytest.mark.parametrize("line", ["a " + "9" * 5000, "a 9999999999", "a \u0663", "x" * 5000, '"' + "a" * 3000])
def test_numbers_of_frames_have_a_few_digits(tmp_path, line):
    (tmp_path / "list.txt").write_text(line)
    with raises_input_error(match=r"line 1, is .*; expected a folder and its number of frames"):
        listed_clips(tmp_path / "list.txt")
