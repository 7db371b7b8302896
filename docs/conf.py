"""Settings of Sphinx for `make docs`."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# For the kernels of the notebooks, whose operators are too small for several threads.
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# They warn that they listen to a port of this machine.
IPYTHON = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, IPYTHON, ignore_errors=True)
os.environ["IPYTHONDIR"] = str(IPYTHON)
(IPYTHON / "profile_default").mkdir()
(IPYTHON / "profile_default" / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n")

project = "timecycle"
author = "timecycle contributors"
copyright = "timecycle contributors"
version = release = re.findall(r'__version__ = "(.+)"', (ROOT / "timecycle" / "version.py").read_text())[0]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "docs.docstrings", "docs.command_help"]
exclude_patterns = ["pictures"]
root_doc = "index"
# Files elsewhere that a page includes: links to them become links to the page.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "get_started.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "notes/benchmarks.md",
    "examples/README.md": "examples.md",
    "csrc/README.md": "notes/csrc.md",
    "csrc/cuda/NOTES.md": "notes/cuda.md",
    "kernels/NOTES.md": "notes/triton.md",
    "timecycle/models/weights/README.md": "model_card.md",
}

# Pages are Markdown. Formulas become MathML, which browsers show without a script.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Pages with code cells are executed; a cell that fails ends the build.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # none from a network

# API reference; docs/docstrings.py says what is markup in a docstring.
default_role = "py:obj"
smartquotes_action = "D"  # dashes; quotes belong to values
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"timecycle {release}"
html_static_path = ["static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


def _visit_math(translator: Any, node: nodes.Node) -> None:
    display = isinstance(node, nodes.math_block)
    mathml = tex2mathml(node.astext(), as_block=display)
    translator.body.append(f'<div class="math">{mathml}</div>' if display else mathml)
    raise nodes.SkipNode


def _move_links(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Make the relative links of an included file relative to the page that includes it."""
    folder, page = (ROOT / "docs" / path).resolve().parent, (ROOT / "docs" / app.env.docname).parent

    def moved(link: re.Match[str]) -> str:
        place = (folder / link[1]).resolve()
        if not place.exists():
            return link[0]
        place = ROOT / "docs" / PAGES.get(str(place.relative_to(ROOT)), place)
        return f"]({os.path.relpath(place, page)}"

    content[0] = re.sub(r"\]\((?!https?:)([^)\s#]+)", moved, content[0])


def setup(app: Sphinx) -> None:
    """Register what the settings above name."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math, None))
    app.connect("include-read", _move_links)
