"""The blocks of Markdown that are made from data: python -m docs.generated [--write].

In a page, a block stands between `<!-- generated: NAME -->` and `<!-- end of generated -->`; NAME is one of BLOCKS.
`--write` makes them anew. Without it, and in tests/test_docs.py, a block that differs from its data is an error.
"""

import json
import re
import sys
from collections.abc import Callable

from benchmarks import best_protocol, causes, intervals, pitfalls, report, report_gpu, weights
from docs import backend_tables, cause_tables, protocol_tables
from docs.numbers import DOORS, ROOT, pages, rewrite


def demo_printed() -> str:
    """The end of what `make demo` prints."""
    doors = json.loads((ROOT / DOORS).read_text())
    lines = doors["commands"]["demo"]["printed"]
    return "\n".join(["```text", *(line.replace("file://./", "file:///.../") for line in lines), "```"])


BLOCKS: dict[str, Callable[[], str]] = {
    "demo, printed": demo_printed,
    **backend_tables.BLOCKS,
    "causes, attributes": cause_tables.attributes,
    "causes, made clips": causes.block,
    "causes, real video": causes.judged,
    "causes, rules": cause_tables.rules,
    "cpu, machines": report.cpus,
    "cpu, beside others": report.cpu_others,
    "cpu, beside products": report.cpu_products,
    "cpu, beside own forms": report.cpu_own,
    "cpu, large": report.cpu_alone,
    "cpu, memory over time": report.memory_over_time,
    "cuda, versions of the scan": report_gpu.versions,
    "gpu, machine": report_gpu.machine,
    "gpu, scan and call": report_gpu.headline,
    "gpu, affinity": report_gpu.cases,
    "gpu, training": report_gpu.training,
    "gpu, videos": report_gpu.videos,
    "gpu, slower": report_gpu.slower,
    "intervals, coverage": intervals.block,
    "pitfalls": pitfalls.block,
    "protocol best": best_protocol.block,
    "protocols": protocol_tables.protocols,
    "protocols, field by field": protocol_tables.fields,
    "published and reproduced": protocol_tables.reproduced,
    "shipped network": weights.block,
    "tracking, stages": report.tracking,
}
"""Name -> function that returns the block's Markdown."""

BLOCK = re.compile(r"(<!-- generated: ([^\n]*?) -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def written(text: str) -> str:
    """A page with its blocks made anew. Raises KeyError for an unknown name."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]().strip()}\n\n{found[3]}", text)


def problems() -> list[str]:
    """What is wrong in any page, a line each."""
    found = []
    for path in pages():
        text = path.read_text()
        name = path.relative_to(ROOT)
        unknown = [block[2] for block in BLOCK.finditer(text) if block[2] not in BLOCKS]
        found += [f"{name}: {block!r} is not in BLOCKS" for block in unknown]
        if not unknown and written(text) != text:
            found.append(f"{name}: a generated block differs from its data; expected: python -m docs.generated --write")
    return found


def main(words: list[str]) -> int:
    """Write the blocks if asked to, and print what is wrong."""
    if words == ["--write"]:
        rewrite(lambda text, path: written(text))
    found = problems()
    print("\n".join(found) or "every generated block is up to date")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
