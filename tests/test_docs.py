"""The pages: numbers and generated blocks come from data, links lead somewhere, examples run."""

import json
import re
from pathlib import Path

import pytest

from docs import generated, numbers

ROOT = Path(__file__).parents[1]


def test_every_number_comes_from_a_results_file():
    assert numbers.problems() == []


def test_every_generated_block_is_up_to_date():
    assert generated.problems() == []


@pytest.mark.parametrize(
    "text",
    [
        "It takes 0.4 of the time.",
        "It takes 12 s.",
        "It is 3 times faster.",
        "It is 3x faster",
        "It needs 414 MB",
        "87 % of them",
        "4 to 5 points more",
        "between 2.5-3.5 GB",
    ],
)
def test_a_number_without_a_file_is_found(text):
    assert numbers.unsourced(text)
    assert not numbers.unsourced(f"    {text}" if text.startswith("    ") else f"`{text}`")
    assert not numbers.unsourced(f'[{text}](results.json "name")')


@pytest.mark.parametrize(
    "text",
    ["480 x 854 pixels", "top-5 of 8 frames", "Python 3.11 or newer", "frames 12 to 40", "Section 3.2", "DAVIS-2017"],
)
def test_a_number_that_nobody_measured_is_left_alone(text):
    assert not numbers.unsourced(text)


def test_a_number_that_differs_from_its_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps({"seconds": 0.5}))
    (tmp_path / "page.md").write_text('takes [0.4 s](results.json "seconds") and [1 s](results.json "other")\n')
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    seconds = numbers.Number("results.json", lambda r: r["seconds"], numbers.decimals(1, "s"))
    gone = numbers.Number("gone.json", lambda r: r["seconds"], numbers.decimals(1, "s"))
    monkeypatch.setattr(numbers, "NUMBERS", {"seconds": seconds, "gone": gone})
    assert numbers.problems() == [
        'page.md: [0.4 s](results.json "seconds"); expected [0.5 s](results.json "seconds")',
        "page.md: 'other' is not in NUMBERS",
    ]
    (tmp_path / "page.md").write_text('takes [0.4 s](gone.json "gone")\n')
    assert numbers.problems() == ["page.md: 'gone' is of gone.json, which does not exist"]
    (tmp_path / "page.md").write_text('takes [0.4 s](results.json "seconds")\n')
    assert numbers.main(["--write"]) == 0
    assert (tmp_path / "page.md").read_text() == 'takes [0.5 s](results.json "seconds")\n'


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    missing = []
    for page in numbers.pages():
        text = re.sub(r"^```.*?^```|`[^`]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?[^)]*\)", text):
            place = page.parent / target if target else page
            if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
                missing.append(f"{page.relative_to(ROOT)}: {target}{'#' + anchor if anchor else ''}")
    assert missing == []


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/get_started.md"])
def test_the_examples_of_the_first_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = examples(ROOT / page)
    exec(compile(code, page, "exec"), {})
