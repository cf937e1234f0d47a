"""The examples in docs/law.md give what stands there."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "law.md"


def test_the_example_on_the_page_of_the_law_runs():
    failures, examples = doctest.testfile(str(PAGE), module_relative=False)
    assert examples >= 8
    assert failures == 0
