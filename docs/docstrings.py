"""Docstrings as Sphinx takes them.

In our docstrings backticks mark code and names, and an indented paragraph is a table, if its columns are two blanks or
more apart, or else code. `Args:`, `Returns:` and `Raises:` are Google's sections; sentences that begin with "Returns"
or "Raises InputError" stand for the last two. Nothing else is markup.
"""

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import stringify_annotation

FIELDS = {"Args": "param", "Returns": "returns", "Yields": "yields", "Raises": "raises"}
SENTENCE = re.compile(r"(?:^|(?<=[.:)]) )(Returns|Raises InputError),? (?=\S)")
NAMES = re.compile(r"([*\w]+(?:, [*\w]+)*): (.*)", re.DOTALL)
CODE = re.compile(r"(`[^`]*`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
NAME = re.compile(r"`[A-Za-z_][\w.]*`")


def restructured(docstring: str) -> str:
    """A docstring of ours, without indentation, as reStructuredText.

    All sections become one list of fields, in the place of the first: autodoc adds types to every list.
    """
    parts: list[str] = []
    sections: dict[str, list[str]] = {name: [] for name in FIELDS}
    place = None
    for paragraph in _paragraphs(docstring):
        heading, _, body = paragraph.partition("\n")
        joined = " ".join(paragraph.split())
        if paragraph.startswith(" "):
            parts.append(_table(paragraph) or _code(paragraph))
        elif heading[:-1] in FIELDS:
            sections[heading[:-1]] += re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
        elif SENTENCE.search(joined):
            text, *rest = SENTENCE.split(joined)
            parts.append(_escaped(text))
            for which, sentence in zip(rest[::2], rest[1::2], strict=True):
                sentence = f"{sentence[0].upper()}{sentence[1:]}" if which == "Returns" else f"InputError: {sentence}"
                sections[which.split()[0]].append(sentence)
        else:
            parts.append(_escaped(paragraph))
        if place is None and any(sections.values()):
            place = len(parts)
    parts.insert(len(parts) if place is None else place, "\n".join(_fields(sections)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _paragraphs(docstring: str) -> Iterator[str]:
    """Paragraphs; sections with all that is indented below their heading; indented paragraphs."""
    for part in re.split(r"\n\n+(?=\S)", docstring.strip("\n")):
        if part.partition("\n")[0][:-1] in FIELDS:
            yield part
        else:
            yield from re.split(r"\n\n+(?= )", part, maxsplit=1)


def _fields(sections: dict[str, list[str]]) -> Iterator[str]:
    """The sections as fields; arguments that share a description have it each."""
    for section, entries in sections.items():
        if section in ("Returns", "Yields"):
            yield from [f":{FIELDS[section]}: {_escaped(' '.join(' '.join(entries).split()))}"] if entries else []
            continue
        for entry in entries:
            names, text = NAMES.fullmatch(entry).groups()  # type: ignore[union-attr]  # a docstring that has none fails
            for name in names.split(", "):
                yield f":{FIELDS[section]} {_escaped(name)}: {_escaped(' '.join(text.split()))}"


def _escaped(text: str) -> str:
    """A text in which names between backticks are links, what else is between them and options are code."""
    parts = CODE.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            plain = re.sub(r"[*|\\]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
            parts[index] = OPTION.sub(r"``\g<0>``", plain)
        elif not NAME.fullmatch(part):
            parts[index] = f"`{part}`"
    return "".join(parts)


def _table(paragraph: str) -> str | None:
    """An indented paragraph of terms and what they mean, one or more pairs a line, as a table; None for others."""
    rows: list[list[str]] = []
    for line in textwrap.dedent(paragraph).splitlines():
        cells = re.split(r" {2,}", line)
        if line.startswith(" ") and rows and len(cells) == 2:
            rows[-1][1] += f" {cells[1]}"
        elif line.startswith(" ") or len(cells) % 2 or " = " in line:
            return None
        else:
            rows += [list(pair) for pair in zip(cells[::2], cells[1::2], strict=True)]
    return ".. list-table::\n\n" + "\n".join(f"   * - ``{term}``\n     - {_escaped(text)}" for term, text in rows)


def _code(paragraph: str) -> str:
    """An indented paragraph as a block of Python, if it is that, or of plain text."""
    code = textwrap.dedent(paragraph)
    try:
        ast.parse(code)
    except SyntaxError:
        return f".. code-block:: text\n\n{textwrap.indent(code, '   ')}"
    return f".. code-block:: python\n\n{textwrap.indent(code, '   ')}"


def _process(app: Sphinx, what: str, name: str, kind: Any, options: Any, lines: list[str]) -> None:
    """A handler of autodoc's: restructure a docstring; to that of settings add the options, with their help texts."""
    lines[:] = restructured("\n".join(lines)).splitlines()
    if what == "class" and is_dataclass(kind):
        settings = [field for field in fields(kind) if "help" in field.metadata]
        own = [field for field in settings if field.name in vars(kind).get("__annotations__", {})]
        lines += "".join(map(_attribute, own)).splitlines()


def _attribute(setting: Field[Any]) -> str:
    """An option of training as an attribute of its class."""
    kind, text = stringify_annotation(setting.type, "smart"), setting.metadata["help"]
    head = f".. py:attribute:: {setting.name}\n   :type: {kind}\n   :value: {setting.default!r}"
    return f"\n{head}\n\n   {_escaped(text[0].upper() + text[1:])}.\n"


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """A handler of autodoc's: leave out attributes under their names from before 0.1.0."""
    return True if isinstance(member, property) and isinstance(member.fget, functools.partial) else None


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.reference | None:
    """A handler of Sphinx's: link a name that is documented in one place, of another module, without its module."""
    target, domain = node.get("reftarget", ""), env.domains.python_domain
    places = {
        (entry.docname, entry.node_id)
        for name, entry in domain.objects.items()
        if name.endswith(f".{target}") and (entry.objtype not in ("attribute", "method", "property") or "." in target)
    }
    if node.get("refdomain") != "py" or len(places) != 1:
        return None
    docname, anchor = places.pop()
    return make_refnode(app.builder, node["refdoc"], docname, anchor, content, target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the handlers."""
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True}
