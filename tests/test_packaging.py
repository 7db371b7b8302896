"""The files of the sdist, and the messages where the native kernels are not built."""

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest

from timecycle import native

ROOT = Path(__file__).parents[1]
# As in an isolated build: without torch, setup.py has no extensions whose sources could be listed.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"


def tracked() -> list[str]:
    """The files that git tracks."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    if not names:
        pytest.skip("this is no git checkout, whose files could be listed")
    return names


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the sdist by name, made from a copy of the tracked files, and MANIFEST.in."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in {*tracked(), "MANIFEST.in"}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-c", WITHOUT_TORCH, "--quiet", "sdist"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    (path,) = (folder / "dist").iterdir()
    with tarfile.open(path) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in files}


def test_the_archive_holds_the_checkout(archived):
    assert set(tracked()) - archived.keys() == set()
    for name in ("train.py", "test_davis.py", "csrc/cuda/build.py", "csrc/cuda/work.cuh", "timecycle/ops/speeds.json"):
        assert archived[name] == (ROOT / name).read_bytes()
    assert [name for name in archived if name.endswith((".so", ".pyc"))] == []


def test_a_build_from_the_archive_holds_the_package(archived, tmp_path):
    for name, content in archived.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", WITHOUT_TORCH, "--quiet", "build_py", "--build-lib", "out"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    built = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    modules = [name for name in archived if name.startswith("timecycle/") and name.endswith(".py")]
    kernels = [f"timecycle/{name}" for name in archived if name.startswith("kernels/") and name.endswith(".py")]
    others = [
        "timecycle/models/weights/walk.safetensors",
        "timecycle/ops/speeds.json",
        "timecycle/py.typed",
        "timecycle/viewing/templates/report.html.jinja",
        "timecycle/viewing/templates/uPlot.LICENSE",
    ]
    assert {"timecycle/cli.py", "timecycle/kernels/plan.py"} <= {*modules, *kernels}
    assert {*modules, *kernels, *others} - built == set()
    entry_points = archived["timecycle.egg-info/entry_points.txt"].decode().split()
    assert entry_points == ["[console_scripts]", "timecycle", "=", "timecycle.cli:main"]


FAKE_TORCH = """
class BuildExtension:
    pass

def CppExtension(name, *arguments, **options):
    print(name, "is built against the torch of", __file__)
"""


def test_an_isolated_build_finds_the_torch_that_is_installed(tmp_path):
    """As pip does it: the packages of the environment are not on the path of its own interpreter."""
    for name in ("setup.py", "csrc/cuda/build.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    isolated, installed = tmp_path / "isolated", tmp_path / "installed"
    isolated.mkdir()
    packages = Path(importlib.util.find_spec("setuptools").origin).parents[1]
    for path in (*packages.glob("setuptools*"), packages / "_distutils_hack"):
        (isolated / path.name).symlink_to(path)
    for name, content in {"__init__": "", "version": "cuda = None", "utils/cpp_extension": FAKE_TORCH}.items():
        path = installed / "torch" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = (
        f"import sysconfig; sysconfig.get_path = lambda name: {str(installed)!r}; import setuptools; "
        "setuptools.setup = lambda **_: None; exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("TIMECYCLE_CUDA", "PYTHONPATH")}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(isolated)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"timecycle._C is built against the torch of {installed}/torch/utils/cpp_extension.py\n"


def test_the_archive_holds_every_header_that_its_sources_include(archived):
    included = set()
    for name in archived:
        if name.startswith("csrc/") and name.endswith((".cpp", ".h", ".cu", ".cuh")):
            for header in re.findall(r'^\s*#\s*include\s+"([^"]+)"', archived[name].decode(), re.MULTILINE):
                # Beside the source, under csrc/, or among the emulator's replacements of CUDA headers.
                beside = posixpath.normpath(posixpath.join(posixpath.dirname(name), header))
                places = (beside, f"csrc/{header}", f"tests/emulator/{header}")
                included.add(next((place for place in places if place in archived), beside))
    assert included - archived.keys() == set()
    assert {"csrc/topk_affinity/candidates.h", "csrc/cuda/row_candidates.cuh"} <= included


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as if in site-packages; gives a function that writes pip's direct_url.json."""
    monkeypatch.setattr(native, "PLACE", tmp_path)
    info = tmp_path / "timecycle-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timecycle\nVersion: 0.1.0\n")
    distribution = importlib.metadata.PathDistribution(info)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    return lambda record: (info / "direct_url.json").write_text(json.dumps(record))


NOT_THERE = ModuleNotFoundError("No module named 'timecycle._C'")
SAID = "timecycle's native kernels are not built (No module named 'timecycle._C'); to build them, with a C++ compiler: "


def test_in_a_checkout_build_ext_is_suggested():
    assert ROOT.resolve() == native.PLACE
    assert native.why_missing(NOT_THERE) == SAID + f"cd {ROOT.resolve()} && python setup.py build_ext --force"


@pytest.mark.parametrize(
    ("record", "source"),
    [
        ({"url": "file:///home/me/time%20cycle", "dir_info": {}}, "'/home/me/time cycle'"),
        ({"url": "file:///tmp/timecycle-0.1.0.tar.gz", "archive_info": {}}, "/tmp/timecycle-0.1.0.tar.gz"),
        ({"url": "https://a.example/timecycle.zip", "archive_info": {}}, "https://a.example/timecycle.zip"),
        (
            {"url": "https://a.example/t.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "git+https://a.example/t.git@abc",
        ),
        (None, "timecycle"),
    ],
)
def test_installed_pip_is_suggested(installed, record, source):
    if record:
        installed(record)
    assert native.why_missing(NOT_THERE) == SAID + (
        f"TIMECYCLE_REQUIRE_NATIVE=1 pip install --no-deps --force-reinstall --no-cache-dir {source}"
    )


def test_a_module_built_for_another_pytorch_is_not_called_missing():
    said = native.why_missing(ImportError("_C.so: undefined symbol: _ZN3c10\nand so on"))
    assert said.startswith(
        "timecycle's native kernels cannot be loaded, as if built for another PyTorch (_C.so: undefined symbol: "
        "_ZN3c10); to build them, "
    )


@pytest.mark.parametrize("there", [True, False])
def test_installed_without_kernels_import_warns_once(installed, monkeypatch, there):
    spec = importlib.machinery.ModuleSpec("timecycle._C", None)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: spec if there else None)
    native.say_missing.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            native.say_if_installed_without()
        native.say_missing(native.why_missing(NOT_THERE))  # as the first call of an operator
    assert len(said) == 1
    assert "TIMECYCLE_REQUIRE_NATIVE=1 pip install " in str(said[0].message)
    native.say_missing.cache_clear()


def test_in_a_checkout_import_is_silent(monkeypatch):
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    native.say_missing.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.say_if_installed_without()


def test_a_build_that_requires_kernels_fails_without_torch(tmp_path, monkeypatch):
    for name in ("setup.py", "csrc/cuda/build.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("TIMECYCLE_REQUIRE_NATIVE", "1")
    command = [sys.executable, "-c", WITHOUT_TORCH, "build_ext"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: native kernels are not built: torch is not here (pip: install it first, or add --no-build-isolation)\n"
    )
