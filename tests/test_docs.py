"""The pages of the documentation: what they point to exists, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for folder in (".", "docs", "patches", "patches/*", "recipes") for page in ROOT.glob(f"{folder}/*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths in backticks, in a layout or in prose, from the top of the repository.
FILE = re.compile(
    r"\b(?:verl_cov|tests|benchmarks|docs|patches|requirements|recipes)/[\w./-]*\.(?:py|yaml|md|lock|sh|json)\b"
)
MODULE = re.compile(r"python -m ((?:verl_cov|benchmarks|docs|recipes|tests)[\w.]*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_path_of_a_page_exists(page):
    text = page.read_text()
    missing = [path for path in FILE.findall(text) if not (ROOT / path).exists() and not (page.parent / path).exists()]
    missing += [name for name in MODULE.findall(text) if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    for link in LINK.findall(text):
        path, _, heading = link.partition("#")
        if ":" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target.read_text())):
            missing.append(link)
    assert not missing


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
