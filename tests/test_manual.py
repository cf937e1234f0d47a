"""`verl-cov docs`, and that whatever is printed names a place that a user of the wheel has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.test_messages import commands
from verl_cov import manual
from verl_cov.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "verl_cov"
# Written for who has the repository: files that `study report` makes there.
OF_A_CHECKOUT = {"docs/study.md", "docs/study/data"}


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, ["docs", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_list_has_every_page_with_its_title_and_each_can_be_shown():
    listed = shown()
    assert str(ROOT / "docs") in listed
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "recipes" / "README.md", ROOT / "patches" / "README.md"]:
        name = page.stem if page.stem != "README" else page.parent.name
        text = page.read_text()
        assert re.search(rf"^  {name} +{re.escape(text.splitlines()[0][2:])}$", listed, flags=re.MULTILINE)
        assert shown(name).strip() == text.strip()
        assert shown(name, "--path").strip() == str(page)
    assert shown("--path").strip() == str(ROOT / "docs")


def test_a_section_ends_before_the_next_of_its_level():
    text = "# T\n## A b, `c`\none\n### deeper\ntwo\n```\n## no heading\n```\n## B\nthree\n"
    assert manual.section(text, "a-b-c") == "## A b, `c`\none\n### deeper\ntwo\n```\n## no heading\n```\n"
    assert manual.section(text, "b") == "## B\nthree\n"
    assert shown("metrics#the-token-dump").startswith("## The token dump\n")
    with pytest.raises(ValueError, match="no section 'no-heading'"):
        manual.section(text, "no-heading")


@pytest.mark.parametrize(("page", "says"), [("metrix", "did you mean metrics"), ("law#what-is-red", "what-is-read")])
def test_a_page_that_is_not_there_is_one_line_with_the_nearest_name(page, says):
    done = CliRunner().invoke(app, ["docs", page])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def printed() -> Iterator[tuple[str, str]]:
    """Where something that may be printed stands, and it: texts of the code, help, and configuration files."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield f"{path.name}:{node.lineno}", node.value
    for path in sorted((PACKAGE / "conf").rglob("*.yaml")):
        yield path.name, path.read_text()
    for words in [[], *(words[:1] for words, _ in commands()), *(words for words, _ in commands())]:
        text = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "1000"}).stdout
        yield f"{' '.join(words)} --help", " ".join(text.split())


def test_nothing_that_is_printed_sends_a_user_to_a_file_of_the_repository():
    folders = "docs|recipes|patches|tests|requirements"
    file = re.compile(rf"\b(?:{folders})/[\w./-]*\.(?:md|sh|lock)\b|\bCONTRIBUTING\b|make setup")
    wrong = [
        (place, found[0]) for place, text in printed() for found in file.finditer(text) if found[0] not in OF_A_CHECKOUT
    ]
    assert not wrong


def test_every_page_that_is_named_instead_is_there():
    texts = [path.read_text() for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml"))]
    # A message may be cut where its line in the code ends.
    named = {name for text in texts for name in re.findall(r'verl-cov docs (?:"\s*(?:f?"))?([a-z][\w#-]*)', text)}
    assert {"metrics", "controls", "law", "data", "launchers#a-ray-cluster"} <= named
    for name in named:
        shown(name)
