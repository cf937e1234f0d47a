"""`verl-cov docs`: the documentation of this installation, in the terminal.

A wheel has the pages as Markdown in `verl_cov/docs`, without their pictures; a checkout has them in `docs`. The site
(`make site`) is made from the same files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from verl_cov import suggestions, terminal

HERE = Path(__file__).parent
EXAMPLES = terminal.examples("verl-cov docs", "verl-cov docs metrics", "verl-cov docs metrics#the-token-dump")


def folder() -> Path:
    """Where the pages are. Raises FileNotFoundError if this installation has none."""
    for top in (HERE, HERE.parent):  # a wheel's, a checkout's
        if (top / "docs" / "install.md").is_file():
            return top / "docs"
    raise FileNotFoundError(f"{HERE / 'docs'}: this installation has no pages; reinstall verl-cov")


def pages() -> dict[str, Path]:
    """The pages by name, `recipes` and `patches` with them, which are not in `docs`."""
    top = folder().parent
    found = {path.stem: path for path in folder().glob("*.md")}
    found |= {name: top / name / "README.md" for name in ("recipes", "patches")}
    return dict(sorted(found.items()))


def section(text: str, heading: str) -> str:
    """The part of a page below a heading, named by its anchor (`the-token-dump`). Raises ValueError without it."""
    code = [found.span() for found in re.finditer(r"^(```|~~~).*?^\1", text, flags=re.MULTILINE | re.DOTALL)]
    titles = re.finditer(r"^(#+) (.+)$", text, flags=re.MULTILINE)
    found = [each for each in titles if not any(start < each.start() < end for start, end in code)]
    anchors = [anchor(each[2]) for each in found]
    if heading not in anchors:
        raise ValueError(suggestions.unknown("section", heading, anchors))
    start = found[anchors.index(heading)]
    later = (each.start() for each in found if each.start() > start.start() and len(each[1]) <= len(start[1]))
    return text[start.start() : next(later, len(text))]


def anchor(title: str) -> str:
    """What links call a heading: `The token dump` is `the-token-dump`."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def docs(
    page: Annotated[str | None, typer.Argument(help="A page, or PAGE#SECTION; else: which pages there are.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print where the file is instead.")] = False,
) -> None:
    """Show the documentation of this installation: its pages, one of them, or where they are."""
    with terminal.one_line():
        found = pages()
        name, mark, heading = (page or "").partition("#")
        name = Path(name).name.removesuffix(".md").lower()
        if name and name not in found:
            raise ValueError(suggestions.unknown("page", name, found))
        if path:
            typer.echo(found[name] if name else folder())
        elif name:
            text = found[name].read_text(encoding="utf-8")
            _show(section(text, heading) if mark else text)
        else:
            _list(found)


def _show(text: str) -> None:
    console = terminal.console()
    if not console.is_terminal:
        typer.echo(text)
        return
    from rich.markdown import Markdown

    with console.pager(styles=True):
        console.print(Markdown(text))


def _list(found: dict[str, Path]) -> None:
    typer.echo(f"The pages, in {folder()} (`verl-cov docs NAME` shows one):\n")
    width = max(map(len, found))
    for name, place in found.items():
        title = place.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        typer.echo(f"  {name:{width}}  {title}")
