"""The directive `command-help`: help texts of the command line, from the program itself."""

import io
import os
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from timecycle.cli import run

COLUMNS = "88"
"""Of the texts, so that they fit a page."""


def help_text(words: str) -> str:
    """What `timecycle WORDS --help` prints."""
    text = io.StringIO()
    with patch.dict(os.environ, COLUMNS=COLUMNS), redirect_stdout(text), suppress(SystemExit):
        run([*words.split(), "--help"])
    return text.getvalue()


class CommandHelp(SphinxDirective):
    """The help text of `timecycle` with the words that are the argument."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The text as a block."""
        text = help_text("".join(self.arguments))
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
