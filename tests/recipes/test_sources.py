"""Each number of a recipe has a source beside it, and no group sets what another one sets."""

from __future__ import annotations

import re

import pytest

from verl_cov.recipes import catalogue, sources
from verl_cov.recipes.catalogue import CONF, GROUPS

FILES = sorted(
    str(path.relative_to(CONF)) for part in ("recipe", "experiment") for path in (CONF / part).rglob("*.yaml")
)
FILES += ["verl_cov/prime.yaml"]  # the recipe has its numbers from there
SOURCE = re.compile(
    r"Sec\.|App\.|Fig\.|Table|Eq\.|Listing|authors'|ours|verl's default|verl_cov/|model card|FSDP2"
    r"|PRIME's (paper|script|code)|verl's PRIME recipe"
)
# Names, and what only points to something that has its own source.
PLUMBING = re.compile(
    r"recipe\.(model|algorithm|entropy|task|scale|experiment|name|max_model_len)"
    r"|reward\.custom_reward_function\.(path|name)"
)


@pytest.mark.parametrize("file", FILES)
def test_each_value_says_where_it_is_from(file):
    for setting in sources.settings(file):
        points = isinstance(setting.value, str) and "${" in setting.value
        if PLUMBING.fullmatch(setting.key) or (points and not setting.why):
            continue
        assert SOURCE.search(setting.why), f"{file}:{setting.line} {setting.key}: {setting.why!r}"


def test_comments_beside_above_and_inherited(tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text(
        "# @package _global_\n# About the file.\na: 1\nb: '# no comment' # beside\n# above,\n# two lines\n"
        "c: {d: 2, e: 3}\n"
        "f: # of all below\n  g: 1\n  h: 2 # its own\n"
    )
    monkeypatch.setattr(sources, "CONF", tmp_path)
    found = {setting.key: (setting.value, setting.line, setting.why) for setting in sources.settings("x.yaml")}
    assert found == {
        "a": (1, 3, ""),
        "b": ("# no comment", 4, "beside"),
        "c.d": (2, 7, "above, two lines"),
        "c.e": (3, 7, "above, two lines"),
        "f.g": (1, 9, "of all below"),
        "f.h": (2, 10, "its own"),
    }


def owned(group: str) -> dict[str, set[str]]:
    """key -> the values that files of a group set it to, as written."""
    keys: dict[str, set[str]] = {}
    for name in catalogue.options(group):
        selection = catalogue.Selection({group: name})
        for setting in sources.by_key(selection).values():
            keys.setdefault(setting.key, set()).add(str(setting.value))
    return keys


def test_no_group_sets_what_another_sets():
    """So that the order of groups on the command line does not matter. The same value twice is no conflict."""
    for one in GROUPS:
        for other in GROUPS:
            if one < other:
                mine, theirs = owned(one), owned(other)
                for key in mine.keys() & theirs.keys():
                    assert len(mine[key] | theirs[key]) == 1, f"{one} and {other} both set {key}"


def test_the_files_of_a_recipe_in_the_order_in_which_they_win():
    files = sources.files(catalogue.parse(["sec4-7b/kl_cov"]))
    assert files.index("recipe/model/_base.yaml") < files.index("recipe/model/qwen2.5-7b.yaml")
    assert files.index("verl_cov/kl_cov.yaml") < files.index("recipe/entropy/kl_cov.yaml")
    assert files[-1] == "experiment/sec4-7b.yaml"
