"""The pages of the documentation: what they point to exists, what they say to type can be typed, and does what stands
there; the README stays short."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from docs import examples
from verl_cov.cli import app
from verl_cov.recipes import catalogue

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
    modules = [ROOT / name.replace(".", "/") for name in MODULE.findall(text)]
    missing += [at.name for at in modules if not at.with_suffix(".py").exists() and not (at / "__main__.py").exists()]
    for link in LINK.findall(text):
        path, _, heading = link.partition("#")
        if ":" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target.read_text())):
            missing.append(link)
    assert not missing


# --- what they say to type --------------------------------------------------------------------------------------------

PROGRAM = r"(?:\.venv/bin/)?(?:verl-cov|python -m)"
CONFIG = ROOT / "verl_cov" / "conf"


def typed(text: str) -> list[str]:
    """The command lines of a page, in blocks and within sentences, without comments and [optional words]."""
    text = text.replace("\\\n", " ")
    lines = re.findall(rf"^(?: {{4,}}|\$ )({PROGRAM} (?!\d).+)$", text, flags=re.MULTILINE)
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        lines += re.findall(rf"^({PROGRAM} .+)$", block, flags=re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(line.split()) for line in re.findall(rf"`({PROGRAM} [^`]+)`", prose)]
    lines = [re.split(r"\s#\s|\s[|;>]\s|\s\.\.\.", f"{line} ")[0] for line in lines]
    return [" ".join(re.sub(r"\s\[[^\]]*\]", "", line).rstrip(") ").split()) for line in lines]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "CHANGELOG.md"],  # which has commands of old
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_of_a_page_is_one_that_its_program_takes(page):
    wrong = []
    for line in typed(page.read_text()):
        program, *words = shlex.split(line.removeprefix(".venv/bin/"))
        said = of_verl_cov(words) if program == "verl-cov" else of_python(words[1], words[2:])
        wrong += [f"{line}: {said}"] if said else []
    assert not wrong


def of_verl_cov(words: list[str]) -> str | None:
    """What `verl-cov` has against these words; nothing is run."""
    command: Any = typer.main.get_command(app)
    names = []
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0].isupper():  # COMMAND: any of them
            return None
        if words[0] not in command.commands:
            return f"there is no command {words[0]!r}"
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands"):  # an option of a group, such as --install-completion, acts when it is parsed
        known = {option for each in command.params for option in each.opts}
        return next((f"No such option: {word}" for word in words if word not in known), None)
    if not words or "--config" in words:  # a mention, such as `verl-cov tokens`; a file that must exist
        return None
    try:
        command.make_context(" ".join(names), list(words))
    except Exception as error:  # Typer brings a click of its own, or takes the installed one
        if type(error).__name__ in ("Exit", "MissingParameter"):  # help; a mention, such as `verl-cov recipes run -h`
            return None
        if not hasattr(error, "format_message"):
            raise
        return error.format_message()
    return overridden(words) or (
        unknown_recipe(words) if names[:1] == ["recipes"] and names != ["recipes", "list"] else None
    )


def unknown_recipe(words: list[str]) -> str | None:
    recipe = [word for word in itertools.takewhile(lambda word: not word.startswith("-"), words) if "=" not in word]
    if not recipe or "$" in recipe[0] or recipe[0].isupper():
        return None
    try:
        if re.search(r"^[a-z][^/]*/[A-Z]+$", recipe[0]) or (
            len(recipe) == 1 and "/" not in recipe[0]
        ):  # EXPERIMENT/NAME
            catalogue.experiment(recipe[0].partition("/")[0])
        elif not any(re.search(r"[A-Z]{3}", word) for word in recipe):
            catalogue.parse_all(recipe)
    except catalogue.UnknownRecipe as error:
        return str(error)
    return None


def of_python(module: str, words: list[str]) -> str | None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"there is no module {module}"
    if not (ROOT / module.partition(".")[0]).is_dir():  # another package's
        return overridden(words)
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return next((f"no option {word}" for word in words if word.startswith("--") and word[2:] not in source), None)


def overridden(words: list[str]) -> str | None:
    """What is wrong with the names of our configuration files in Hydra's words."""
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if word.startswith("--"):
            continue
        for name in re.findall(r"[\w.-]+", value):
            known = key == "verl_cov" or key.startswith(("recipe/", "experiment"))
            if known and not name.isupper() and not (CONFIG / key / f"{name}.yaml").is_file():
                return f"there is no {key}/{name}.yaml"
    return None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("verl-cov fitt RUN", "there is no command"),
        ("verl-cov fit RUN --pooled", "No such option"),
        ("verl-cov recipes show", None),
        ("verl-cov doctor +verl_cov=[kl_cov,tarjet]", "there is no verl_cov/tarjet.yaml"),
        ("verl-cov recipes run sec4-7b/kl_kov", "did you mean"),
        ("verl-cov recipes commands fig99", "fig99"),
        ("verl-cov recipes run fig99/NAME", "fig99"),
        ("verl-cov recipes run sec4-7b/NAME", None),
        ("python -m verl.trainer.main_ppo +recipe/model=qwen3", "there is no recipe/model/qwen3.yaml"),
        ("python -m benchmarks.run --bigest 1e8", "no option --bigest"),
        ("python -m verl.trainer.main_ppo YOUR_OPTIONS +verl_cov=NAME", None),
    ],
)
def test_a_command_that_cannot_be_typed_is_found(line, says):
    ((found,),) = (typed(f"{form.format(line)}\n") for form in ("    {}   # comment",))
    assert typed(f"so `{line}` says\n") == [found] == [line]
    program, *words = shlex.split(line)
    said = of_verl_cov(words) if program == "verl-cov" else of_python(words[1], words[2:])
    assert (said is None) if says is None else (said is not None and says in said)


# --- the examples of docs/commands.md ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> list[examples.Example]:
    return examples.examples(examples.PAGE.read_text())


def test_every_command_has_an_example(written):
    def below(command: Any, words: tuple[str, ...]) -> set[tuple[str, ...]]:
        if not hasattr(command, "commands"):
            return {words}
        return set().union(*(below(each, (*words, name)) for name, each in command.commands.items()))

    shown = {tuple(one.words[1:3]) for one in written} | {tuple(one.words[1:2]) for one in written}
    assert below(typer.main.get_command(app), ()) <= shown


def test_the_examples_print_what_stands_there(written):
    ran = 0
    for example, output in examples.outputs(written):
        assert examples.form(output) == examples.form(example.output), example.command
        ran += 1
    assert ran > 20


def test_two_outputs_that_differ_in_more_than_numbers_have_two_forms():
    assert examples.form("ceiling 0.62 [0.57, 0.67] in /x/a\n") == examples.form("ceiling   0.9 [0.1, 1] in /b/c\n")
    assert examples.form("ceiling 0.62\n") != examples.form("floor 0.62\n")
    assert examples.form("one\ntwo\n") != examples.form("one\n")


# --- the notebook -----------------------------------------------------------------------------------------------------


def printed(notebook: Any) -> list[list[str]]:
    outputs = [["".join(output.get("text", "")) for output in cell.get("outputs", [])] for cell in notebook["cells"]]
    return [examples.form("".join(texts)) for texts in outputs]


@pytest.mark.nightly
def test_the_notebook_runs_and_prints_what_it_holds():
    from docs import notebook

    held = json.loads(notebook.NOTEBOOK.read_text())
    made = notebook.executed()
    assert printed(made) == printed(held)
    for one in (made, held):
        pictures = [
            out for cell in one["cells"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})
        ]
        assert len(pictures) == 2
    assert notebook.NOTEBOOK.stat().st_size < 300_000


# --- the site ---------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_sites_navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("", lambda *_: None)  # mkdocs' own tags
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]

    def leaves(entry: Any) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(leaves, entry.values() if isinstance(entry, dict) else entry))

    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    notebooks = {str(page.relative_to(ROOT / "docs").with_suffix(".md")) for page in (ROOT / "docs").rglob("*.ipynb")}
    assert pages | notebooks <= leaves(nav)


def test_a_page_longer_than_two_screens_has_headings_for_its_contents():
    site = pytest.importorskip("docs.site")
    long = [page for page in PAGES if "[TOC]" in site.with_contents(page.read_text())]
    assert len(long) > 15
    for page in long:
        assert len(re.findall(r"^##+ ", page.read_text(), flags=re.MULTILINE)) >= 2, page


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_has_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_no_module_is_longer_than_contributing_allows():
    most = int(re.search(r"modules at most (\d+) lines", (ROOT / "CONTRIBUTING.md").read_text())[1])
    modules = [path for name in ("verl_cov", "benchmarks", "recipes", "docs") for path in (ROOT / name).rglob("*.py")]
    assert len(modules) > 200
    assert [str(path) for path in modules if len(path.read_text().splitlines()) > most] == []
