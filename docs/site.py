"""What the site has besides docs/*.md: `mkdocs build` calls `on_files` and `on_page_content` (mkdocs.yml).

Pages from outside of docs/ (README, recipes, patches), the reference from docstrings, the notebook, and the code that
pages link to. Links are written for the repository, where they work as they are; here they are turned to the site's
pages, or to the public repository if VERL_COV_REPOSITORY names one.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages that are elsewhere in the repository, by their place in the site.
OUTSIDE = {
    "index.md": "README.md",
    "recipes.md": "recipes/README.md",
    "patches.md": "patches/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{f"patches-{each}.md": f"patches/{each}/README.md" for each in ("0.6.1", "0.7.1", "0.9.1")},
}
NOTEBOOKS = ("notebooks/first_run.ipynb",)
# The reference: title, and modules in the order of the page.
REFERENCE = {
    "law": ("The law", ["verl_cov.law"]),
    "controls": ("Controls", ["verl_cov.core.controls.tokens", "verl_cov.core.controls.rules"]),
    "core": ("Selection and losses", [f"verl_cov.core.{name}" for name in ("covariance", "selection", "losses")]),
    "metrics": ("Metrics", [f"verl_cov.core.{name}" for name in ("metric_table", "metrics", "rollout", "pass_at_k")]),
    "config": ("Configuration", ["verl_cov.hooks.config", "verl_cov.core.prime.prime_config"]),
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
NAMED = re.compile(r"\[((?:[\w-]+/)*[\w-]+\.md)\]\(([^)\s#]+)")  # a link whose text is the file's name
FENCE = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
LONG = 2600  # letters: two screens of a phone
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml", ".patch": "diff"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and turn the links of all pages to this site."""
    places = {f"docs/{file.src_uri}": file.src_uri for file in files} | {page: uri for uri, page in OUTSIDE.items()}
    texts = {uri: (page, (ROOT / page).read_text()) for uri, page in OUTSIDE.items()}
    texts |= {file.src_uri: (f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()}
    for name in NOTEBOOKS:
        uri = name.replace(".ipynb", ".md")
        places[f"docs/{name}"] = uri
        texts[uri] = (f"docs/{name}", notebook((ROOT / "docs" / name).read_text()))
    code: set[str] = set()
    made = {
        uri: with_contents(relinked(text, page, uri, places, config.repo_url, code))
        for uri, (page, text) in texts.items()
    }
    made |= {code_page(path): code_text(path) for path in sorted(code)}
    made |= {f"api/{name}.md": with_contents(reference(*each), True) for name, each in REFERENCE.items()}
    for uri, text in made.items():
        if (old := files.get_file_from_path(uri)) is not None:
            files.remove(old)
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Docstrings name things in Sphinx's way (:func:`name`), which Markdown does not know."""
    return re.sub(r":(?:func|mod|class|attr|data|meth|exc):<code>[~.]*([^<]*)</code>", r"<code>\1</code>", html)


def relinked(text: str, page: str, uri: str, places: dict[str, str], repository: str | None, code: set[str]) -> str:
    """`text` of the file `page`, its links turned to the site; what they need of the repository comes to `code`."""

    def turned(found: re.Match[str]) -> str:
        path, hash_, heading = found[2].partition("#")
        if not path or ":" in path:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if target in places:
            return f"]({posixpath.relpath(places[target], posixpath.dirname(uri) or '.')}{hash_}{heading})"
        if not (ROOT / target).exists():
            return found[0]  # mkdocs names it
        if repository:
            return f"]({repository.rstrip('/')}/blob/main/{target}{hash_}{heading})"
        code.add(target)
        return f"]({posixpath.relpath(code_page(target), posixpath.dirname(uri) or '.')})"

    text = NAMED.sub(lambda link: f"[{title_of(ROOT / posixpath.dirname(page) / link[2]) or link[1]}]({link[2]}", text)
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(turned, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + LINK.sub(turned, text[end:])


def title_of(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ") if page.is_file() else ""


def with_contents(text: str, long: bool = False) -> str:
    """A page of more than two screens, with its contents below its title: on a phone there is no room beside it."""
    title, newline, rest = text.partition("\n")
    if not (long or len(text) >= LONG) or not title.startswith("# "):
        return text
    contents = '<details class="contents" markdown><summary>On this page</summary>\n\n[TOC]\n\n</details>'
    return f"{title}{newline}\n{contents}\n{rest}"


def code_page(path: str) -> str:
    return f"code/{path}.md"


def code_text(path: str) -> str:
    """A page with a file of the repository, or with all files of a folder. Not searched: it is not prose."""
    place = ROOT / path
    files = [place] if place.is_file() else sorted(each for each in place.rglob("*") if each.suffix in LANGUAGES)
    lines = ["---", "search:", "  exclude: true", "---", f"# {path}", ""]
    for file in files:
        if file != place:
            lines += [f"## {file.relative_to(place)}", ""]
        lines += [f"~~~~~~{LANGUAGES.get(file.suffix, 'text')}", file.read_text().rstrip("\n"), "~~~~~~", ""]
    return "\n".join(lines)


def reference(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def notebook(text: str) -> str:
    """A notebook as Markdown: prose, code, and what the code printed or drew."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
                parts.append(f"![what the cell above draws](data:image/png;base64,{image})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append("```text\n" + printed.rstrip("\n") + "\n```")
    return "\n\n".join(parts) + "\n"
