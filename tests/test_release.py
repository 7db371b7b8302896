"""What strangers read about a release agrees: version, date, Python versions, one address."""

import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest

from timecycle.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_names_the_newest_entry_of_the_changelog():
    citation = (ROOT / "CITATION.cff").read_text()
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version, day = versions[0]
    assert version == __version__
    assert f"\nversion: {version}\n" in citation
    assert f'\ndate-released: "{day}"\n' in citation
    assert date.fromisoformat(day) >= date.fromisoformat(versions[-1][1])


def test_the_changelog_has_the_sections_of_its_format():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.index("## [Unreleased]") < text.index(f"## [{__version__}]")
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limitations"}


def test_every_python_that_is_claimed_is_run():
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    matrix = re.search(r"^ +python: \[(.+)\]$", (ROOT / ".github/workflows/ci.yml").read_text(), re.MULTILINE)[1]
    assert re.findall(r'"(.+?)"', matrix) == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_the_repository_s_address_is_in_one_file():
    address = PROJECT["urls"]["Source"]
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    found = subprocess.run(["git", "grep", "-lF", address], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode > 1:
        pytest.skip("this is no git checkout, whose files could be searched")  # such as an unpacked sdist
    assert found.stdout.split() == ["pyproject.toml"]
