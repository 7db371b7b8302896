"""Command lines of random options and values, up to the start of the work.

The programs are called in this process, in the case's folder, on a data set of a few pixels. Exit status 2, by which
argparse refuses, counts as refused; any other end but a return is a fault.
"""

import atexit
import contextlib
import functools
import importlib.util
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from unittest import mock

import torch
import torch._dynamo  # which the first call of an operator would import, in seconds
from torch import Tensor
from torch.nn import functional

import timecycle
from tests.task_cases import write_mat
from timecycle import checkpoint, prepare, scores
from timecycle.checkpoints.layouts import LAYOUTS
from timecycle.data.synthetic import make_davis
from timecycle.errors import InputError, sentence
from timecycle.evaluation.davis import command
from timecycle.features.named import SHIPPED
from timecycle.features.parts import PARTS
from timecycle.propagation.protocols import PRESETS, Protocol, protocol
from timecycle.training import command_line, settings
from timecycle.training.run_folder import find_run

ROOT = Path(__file__).parents[3]
ODD = (
    "", " ", "-1", "0", "1", "2", "7", "-0", "1.5", "1e9", "1e999", "-1e999", "nan", "inf", "9" * 400, "1_0", "٣",
    "0x10", "None", "True", "[]", "()", "{}", "a", "é", "\udcff", "x" * 300, "..", ".", "/", "/nowhere", "../x",
    "a/b", "*", "%s", "%(prog)s", "{x}", "@file", "-", "--", "=", ":", "a:b", "os:getcwd", "\n", "a\nb", "\x1b[0m",
    "$HOME", "~", "1,2", "1 2",
)  # fmt: skip
LITERALS = (
    "0", "1", "-1", "5", "1e9", "1e999", "nan", "None", "True", "'x'", "(", "(1,2)", "(0,0,0)", "(1,'a',None)",
    "[1]*9", "{}", "(" * 300, "-" * 1500 + "1", "[" * 900, "9" * 900, "b'x'", "1j", "x", "", "f'{1}'", "lambda: 0",
    "0.5", "2**9", "'" + "a" * 99,
)  # fmt: skip
"""Values of --override, which are parsed as Python literals."""

Options = dict[str, Sequence[str]]
"""Valid values by option; empty for an option without a value."""

EVALUATE: Options = {
    "--davis": ("davis", "nowhere", "davis/ImageSets/2017/val.txt"), "--set": ("val", "train"),
    "--year": ("2017", "2016"), "--filelist": ("list.txt", "nowhere.txt"), "--sequences": ("made-crossing",),
    "--threshold": ("1", "128", "256"), "--remap-255": (), "--remap": ("255=1", "compact", "1=1"),
    "--resume": ("nowhere.pth", "bad.pth"), "--layout": tuple(LAYOUTS), "--part": ("teacher",),
    "--protocol": tuple(PRESETS), "--cropSize": ("64", "320", "-1"),
    "--features": ("colour", "gradients", "colour+gradients", "colour+colour", "json:dumps", "os.path:join"),
    "--override": ("k=7", "resize=native", "side=64"), "--videoLen": ("1", "9"), "--topk_vis": ("1", "5"),
    "--overwrite": (), "--reuse": (), "--fps": ("24", "1e-3"),
    "--device": ("cpu", "auto", "cuda", "meta", "cuda:9", "mps"), "--dtype": ("float32", "float16"), "--debug": (),
    "--frame-stride": ("1", "2"), "--inspect": ("0", "3"), "-j": ("4",), "--gpu-id": ("0",),
    "--batchSize": ("1",), "--T": ("1",),
}  # fmt: skip
SCORE: Options = {
    "--davis": ("davis", "nowhere"), "--results": ("masks", "nowhere"), "--set": ("val",), "--year": ("2017", "2016"),
    "--json": ("scores.json", "davis"), "--workers": ("0", "1"), "--remap-255": (), "--threshold": ("9",),
    "--remap": ("compact", "1=2"),
}  # fmt: skip
VLOG: Options = {
    "--videos": ("davis", "nowhere", "videos"), "--out": ("frames",), "--list": ("clips.txt", "davis"),
    "--jobs": ("1",), "--fps": ("12", "0.5"), "--side": ("256", "16"), "--quality": ("95", "1"),
}  # fmt: skip
DAVIS: Options = {
    "--davis": ("davis", "nowhere"), "--out": ("made.txt", "davis"), "--set": ("val",), "--year": ("2017", "2016"),
    "--remap-255": (), "--threshold": ("9",), "--remap": ("compact", "1=2"),
}  # fmt: skip
CONVERT: Options = {"--out": ("weights", "davis"), "--layout": tuple(LAYOUTS), "--part": ("teacher", "student")}
WRITTEN = {"--save_path", "--out", "--json", "--list", "--checkpoint", "-c"}
"""Options that name an output, which must stay in the case's folder."""


def words_of(rng: random.Random, options: Options, least: Sequence[str] = ()) -> list[str]:
    """A command line: `least`, and some options, a third of their values odd."""
    words = list(least)
    for name in rng.choices(list(options), k=rng.randrange(6)):
        values = options[name]
        if not values:
            words.append(name)
            continue
        odd = rng.random() < 0.35 and name not in WRITTEN
        count = rng.choice([1, 1, 1, 2]) if name in ("--sequences", "--override", "--remap") else 1
        drawn = [rng.choice(ODD if odd else values) for _ in range(count)]
        if name == "--override" and rng.random() < 0.8:
            drawn = [f"{rng.choice([*Protocol.__annotations__, 'x', ''])}={rng.choice(LITERALS)}"]
        joined = count == 1 and name.startswith("--") and drawn[0] != "--"  # of which argparse makes a list
        words += [f"{name}={drawn[0]}"] if joined and rng.random() < 0.3 else [name, *drawn]
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(ODD))
    return words


class Reached(Exception):
    """The program has accepted its command line and starts its work."""


def reached(*arguments: Any, **named: Any) -> NoReturn:
    """Replaces the work."""
    raise Reached


@functools.cache
def data() -> Path:
    """The files that every case finds in its folder."""
    folder = Path(tempfile.mkdtemp(prefix="command-lines-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_davis(folder / "davis", 1, 3, 48, 64)
    shutil.copytree(folder / "davis/Annotations/480p/made-crossing", folder / "masks/made-crossing")
    (folder / "list.txt").write_text("davis/JPEGImages/480p/made-crossing davis/Annotations/480p/made-crossing\n")
    (folder / "bad.pth").write_bytes(b"no weights")
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").write_bytes(b"no video")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, folder / "part.pth")
    write_mat(folder / "jhmdb/joint_positions/a/b/joint_positions.mat", pos_img=torch.ones(2, 15, 2).numpy())
    frames = folder / "jhmdb/Rename_Images/a/b"
    frames.mkdir(parents=True)
    for number, frame in enumerate(sorted((folder / "davis/JPEGImages/480p/made-crossing").iterdir())):
        os.link(frame, frames / f"{number:05d}.png")
    (folder / "jhmdb/splits").mkdir()
    (folder / "jhmdb/splits/a_test_split1.txt").write_text("b.avi 2\n")
    return folder


@contextlib.contextmanager
def working_in(folder: Path, *names: str) -> Iterator[None]:
    """Work in the case's folder, with links to some of the data; discards what is printed."""
    for name in names:
        (folder / name).symlink_to(data() / name)
    before, beside = Path.cwd(), sorted(os.listdir(folder.parent))
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.chdir(before)
    assert sorted(os.listdir(folder.parent)) == beside, f"written outside: {os.listdir(folder.parent)}"


def called(main: Callable[[], Any], words: list[str]) -> Any:
    """What a program returns; None if it started its work.

    Raises InputError for what argparse refuses, or with the sentence that `run_command_line` would print.
    """
    with mock.patch.object(sys, "argv", ["program", *words]):
        try:
            return main()
        except Reached:
            return None
        except SystemExit as error:
            if error.code == 2:
                raise InputError("refused by argparse") from None
            if error.code:
                raise AssertionError(f"exit status {error.code}") from None
            return None
        except (InputError, OSError, MemoryError) as error:
            raise InputError(sentence(error)) from error


@functools.cache
def evaluation() -> ModuleType:
    """The script test_davis.py."""
    spec = importlib.util.spec_from_file_location("script_test_davis", ROOT / "test_davis.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DATA = ("davis", "masks", "list.txt", "bad.pth", "videos", "part.pth")


def case_evaluate(rng: random.Random, folder: Path) -> None:
    words = words_of(rng, EVALUATE, rng.choice([(), ("--davis", "davis"), ("--filelist", "list.txt")]))
    if not any(word.startswith("--features") for word in words):
        words += ["--features", rng.choice(PARTS[1:])]  # the network takes longer to load than the rest
    words += rng.choice([[], [], ["--save_path", rng.choice(["out", "list.txt", "a/b c", "é"])]])
    made: dict[str, Any] = {}

    def noted(*given: Any) -> NoReturn:
        made["rules"] = given[2]
        raise Reached

    with (
        working_in(folder, *DATA),
        mock.patch.multiple(command, write_masks=noted, make_davis=lambda root: Path("davis")),
    ):
        called(evaluation().main, words)
    if made:
        rules = made["rules"]
        rules.select()
        assert rules.length >= 1
        assert rules == protocol(rules)


def case_train(rng: random.Random, folder: Path) -> None:
    with working_in(folder, *DATA):
        words = words_of(rng, training(), rng.choice([(), ("--objective", "walk"), ("--videos", "videos")]))

        def main() -> settings.RunSettings:
            given, _ = command_line.read_command_line(words)
            return find_run(given, lambda run: settings.resolved(given, run.stored, str(run.path)))

        found = called(main, words)
    if found is not None:
        # As a checkpoint would bring them back.
        again = settings.resolved({}, found.to_json())
        gone = {"minutes": None, "resume": None}
        assert asdict(again) | gone == asdict(found) | gone or found != found or "nan" in str(found)


@functools.cache
def training() -> Options:
    """The options of train.py with valid values."""
    found: Options = {}
    for name, field in settings.OPTIONS.items():
        kind = settings.TYPES[name]
        if kind is bool:
            found[settings.flag(name)] = ()
        else:
            choices = getattr(kind, "__args__", ())
            texts = [text for text in choices if isinstance(text, str)]
            default = () if field.default is None else (str(field.default),)
            found[settings.flag(name)] = texts or [*default, "1", "3", "0.5"]
    return found | {
        "--checkpoint": ["out", "bad.pth"], "--resume": ["auto", "bad.pth"], "--T": ["1"], "--hist": ["1"], "-d": ["x"],
        "--filelist": ["list.txt"], "--videos": ["videos"], "--pretrained": ["bad.pth"], "--device": ["cpu"],
    }  # fmt: skip


def case_score(rng: random.Random, folder: Path) -> None:
    least = rng.choice([(), ("--davis", "davis", "--results", "masks")])
    with working_in(folder, *DATA):
        called(scores.main, [*words_of(rng, SCORE, least), *rng.choice([[], ["--workers", "0"]])])


def case_prepare(rng: random.Random, folder: Path) -> None:
    kind = rng.choice(["vlog", "davis", "davis", rng.choice(ODD)])
    least = {"vlog": ("--videos", "videos", "--out", "frames"), "davis": ("--davis", "davis", "--out", "made.txt")}
    words = [kind, *words_of(rng, DAVIS if kind == "davis" else VLOG, least.get(kind, ()))]
    with working_in(folder, *DATA), mock.patch.object(prepare, "_extracted", reached):
        called(prepare.main, words)


def case_convert(rng: random.Random, folder: Path) -> None:
    files = ["bad.pth", "part.pth", "davis", "nowhere", rng.choice(ODD), rng.choice(ODD), str(SHIPPED)]
    words = ["convert", rng.choice(files), *words_of(rng, CONVERT)]
    if rng.random() < 0.1:
        words[0] = rng.choice(ODD)
    with working_in(folder, *DATA):
        called(checkpoint.main, words)


def case_task(rng: random.Random, folder: Path) -> None:
    """Arguments of evaluate_jhmdb."""

    def cells(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)

    numbers = [0, 1, 2, 5, -1, 10**6, 0.5, -0.5, 1e-9, 1e9, float("nan"), float("inf")]
    fields = rng.sample(["k", "length", "temperature", "radius", "sigma", "top", "multiple"], rng.randrange(4))
    options: dict[str, Any] = {name: rng.choice(numbers) for name in fields}
    options["protocol"] = rng.choice([*PRESETS, *PRESETS, *PRESETS, rng.choice(ODD)])
    if rng.random() < 0.3:
        options["listing"] = rng.choice(["nowhere", "list.txt", "bad.pth", "davis"])
    for name in ("top", "k", "length", "multiple"):  # whole numbers, as options say
        options = {key: int(value) if key == name and abs(value) < 1e9 else value for key, value in options.items()}
    options = {
        key: value for key, value in options.items() if key not in ("top", "k", "length") or isinstance(value, int)
    }
    options["side"] = rng.choice([16, 32, 64, 0, -8, 7])
    with working_in(folder, *DATA, "jhmdb"):
        root = rng.choice(["jhmdb", "jhmdb", "jhmdb", "davis", ""])
        found = timecycle.evaluate_jhmdb(cells, root, progress=False, **options)
    for share in found.pck.values():
        assert share != share or 0 <= share <= 1, found.pck
