"""Build the native kernels: python setup.py build_ext.

They are optional. Without torch, a C++ compiler or ninja the package works with its PyTorch reference, and the build
prints the reason in one line. Run on its own, build_ext builds in place, as `build_ext --inplace` does.
"""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def add_installed_torch() -> None:
    """With build isolation, let the torch be imported that is in the environment that pip installs into.

    It is the one that the kernels will be used with, so that they are built against it. The isolated packages come
    first on the path.
    """
    if importlib.util.find_spec("torch") is None:
        place = sysconfig.get_path("platlib")
        if place not in sys.path and Path(place, "torch", "__init__.py").is_file():
            sys.path.append(place)


add_installed_torch()
try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    BuildExtension = CppExtension = None

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"error: setuptools {setuptools.__version__} is too old; expected 77 or newer (pip install -U setuptools)")

SOURCES = sorted(str(p) for p in Path("csrc").rglob("*.cpp") if p.parts[1] != "cuda")
HEADERS = sorted(str(p) for p in Path("csrc").rglob("*.h") if p.parts[1] != "cuda")
# No -march: the kernels have variants for several instruction sets, so that a build runs on other machines. No
# -ffast-math, since the kernels use infinities; the two -fno- options allow loops to be vectorized. Without OpenMP
# at::parallel_for would silently run on one thread; Apple's compiler has none.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
COMPILE = ["-O3", "-g0", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", *OPENMP]


BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
"""Commands that build the modules; others, such as sdist, need none."""


def _cuda_build() -> ModuleType:
    """csrc/cuda/build.py, which has nvcc's command and is not in a package."""
    spec = importlib.util.spec_from_file_location("cuda_build", Path("csrc/cuda/build.py").resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CUDA = _cuda_build()


def extensions() -> list:
    """The extension modules whose build can be attempted; none if TIMECYCLE_WITHOUT_NATIVE is set."""
    if os.environ.get("TIMECYCLE_WITHOUT_NATIVE"):
        return []
    if CppExtension is None:
        reason = "native kernels are not built: torch is not here (pip: install it first, or add --no-build-isolation)"
        if os.environ.get("TIMECYCLE_REQUIRE_NATIVE") and not BUILDING.isdisjoint(sys.argv):
            sys.exit(f"error: {reason}")
        print(reason, file=sys.stderr)
        return []
    found = [
        CppExtension(
            "timecycle._C",
            SOURCES,
            depends=HEADERS,
            include_dirs=[str(Path("csrc").resolve())],
            extra_compile_args=COMPILE,
            extra_link_args=OPENMP,
        )
    ]
    reason = why_not_cuda()
    if reason:
        print(f"CUDA kernels are not built: {reason}", file=sys.stderr)
    else:
        # Not as `sources`: PyTorch's build would compile them itself, for other chips.
        found.append(Extension("timecycle._cuda", [], depends=[str(path) for path in CUDA.SOURCES]))
    return found


def why_not_cuda() -> str | None:
    """Why the CUDA kernels are not built, None if they are; building them needs no GPU."""
    if CUDA.nvcc() is None:
        return "nvcc is not here"
    if os.environ.get("TIMECYCLE_CUDA"):
        return None
    from torch import version

    return None if version.cuda else "this PyTorch is not one for CUDA (TIMECYCLE_CUDA=1 builds them all the same)"


class OptionalBuild(BuildExtension or build_ext):  # type: ignore[misc]
    """Builds the modules that can be built; a failure does not stop the installation."""

    def finalize_options(self) -> None:
        """In place if build_ext is a command of its own, into the package otherwise."""
        super().finalize_options()
        if "build_ext" in self.distribution.commands:
            self.inplace = True

    def run(self) -> None:
        """Build, or print in one line why not."""
        try:
            super().run()
        except Exception as error:
            if os.environ.get("TIMECYCLE_REQUIRE_NATIVE"):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"native kernels are not built: {reason}; the PyTorch reference serves", file=sys.stderr)
            self.extensions = []

    def build_extension(self, extension: Extension) -> None:
        """Build the CUDA module with nvcc alone; if that fails the other module is kept."""
        if extension.name != "timecycle._cuda":
            super().build_extension(extension)
            return
        try:
            self.build_cuda(extension)
        except Exception as error:
            if os.environ.get("TIMECYCLE_REQUIRE_NATIVE"):
                raise
            print(f"CUDA kernels are not built: {error}", file=sys.stderr)
            self.extensions.remove(extension)

    def build_cuda(self, extension: Extension) -> None:
        """Compile and link the module if it is older than its sources. Raises RuntimeError with the first error."""
        out = Path(self.get_ext_fullpath(extension.name))
        newest = max(path.stat().st_mtime for path in CUDA.inputs())
        if self.force or not out.is_file() or out.stat().st_mtime <= newest:
            CUDA.build(out)

    def copy_extensions_to_source(self) -> None:
        """Also print the modules' files."""
        super().copy_extensions_to_source()
        for extension in self.extensions:
            print(f"built {self.get_ext_filename(extension.name)}")


setup(
    packages=[*setuptools.find_packages(include=["timecycle", "timecycle.*"])],
    package_data={
        "timecycle.models": ["weights/*"],
        "timecycle.ops": ["speeds.json"],
        "timecycle.viewing": ["templates/*"],
    },
    package_dir={"timecycle": "timecycle", "timecycle.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
)
