"""Training questions that are in an evaluation set.

Two tests, each linear in the training file:

- exact: the questions are the same characters, case, white space and dollar signs apart;
- overlap: they share 13 words in a row, as in GPT-3's study (Brown et al. 2020, Appendix C; the convention since):
  words are lower case and without punctuation, and a 13-gram that more than 10 training questions have is a common
  phrase and does not count. Chinese, Japanese and Korean characters are words by themselves.

An overlap is a suspicion: competition problems share their set-up sentences. An evaluation question of fewer than 13
words can only match exactly. Paraphrases, translations and changed numbers are not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_cov.tasks.prepare import lock, read_stamp, replacing
from verl_cov.tasks.rows import batches, check_file, question_of

WORDS = 13
COMMON = 10  # a 13-gram in more training questions than this is a common phrase

# \w without the underscore, and one East Asian character at a time.
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+")
_IGNORED = re.compile(r"[\s$]+")


@dataclass
class Overlap:
    """Of one training file with one evaluation file. exact, overlap: training questions found by each test; one that
    is found by both counts as exact. example: (training question, evaluation question)."""

    evaluation: str
    exact: int = 0
    overlap: int = 0
    example: tuple[str, str] | None = None

    @property
    def found(self) -> int:
        """Training questions of either kind."""
        return self.exact + self.overlap


@dataclass
class Contamination:
    """Of one training file: with each evaluation file, and its rows (from 0) that are in any of them."""

    training: Path
    rows: int
    overlaps: list[Overlap]
    indexes: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Index:
    """The questions of the evaluation files: those that are exactly this, and those that have this 13-gram.

    The values are (file, question) numbers.
    """

    names: list[str]
    questions: list[list[str]]
    exact: dict[str, list[tuple[int, int]]]
    grams: dict[str, list[tuple[int, int]]]


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(training files, evaluation files), by extra_info.split, each file once however often and by whatever path it was
    given. Raises ValueError: a file that breaks the schema, or none of one kind."""
    training: list[Path] = []
    evaluation: list[Path] = []
    once: dict[Path, Path] = {}
    for path in files:
        once.setdefault(path.resolve(), path)
    for path in once.values():
        splits = check_file(path).splits
        (training if "train" in splits else evaluation).append(path)
    if not training or not evaluation:
        missing = "training" if not training else "evaluation"
        raise ValueError(f"no {missing} file among {', '.join(map(str, files))} (extra_info.split says which is which)")
    return training, evaluation


def find(
    training: Path, evaluation: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Contamination:
    """Which rows of a training file are in evaluation files. Memory: the evaluation questions' 13-grams."""
    return _find(training, _index(evaluation), progress)


def find_each(
    training: Sequence[Path], evaluation: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[Contamination]:
    """:func:`find` for several training files, of which the evaluation files are read once."""
    index = _index(evaluation)
    for path in training:
        yield _find(path, index, progress)


def _index(evaluation: Sequence[Path]) -> _Index:
    index = _Index([path.stem for path in evaluation], [], {}, {})
    for number, path in enumerate(evaluation):
        distinct = list(dict.fromkeys(question for _, question in _questions(path)))  # copies once
        index.questions.append(distinct)
        for position, question in enumerate(distinct):
            where = (number, position)
            index.exact.setdefault(exact_key(question), []).append(where)
            for gram in set(grams(question)):
                index.grams.setdefault(gram, []).append(where)
    return index


def _find(training: Path, index: _Index, progress: Callable[[int, int], None] | None) -> Contamination:
    total = pq.read_metadata(training).num_rows
    found = Contamination(training, total, [Overlap(name) for name in index.names])
    # Which of the evaluation's 13-grams are common is known at the end only: the few rows that have one wait till then.
    exact: dict[int, set[tuple[int, int]]] = {}
    shared: dict[int, list[str]] = {}
    texts: dict[int, str] = {}
    questions_with: Counter[str] = Counter()
    for row, question in _questions(training):
        if progress and row % 1000 == 0:
            progress(row, total)
        same = index.exact.get(exact_key(question))
        common = [gram for gram in set(grams(question)) if gram in index.grams]
        if same:
            exact[row] = set(same)
        if common:
            shared[row] = common
            questions_with.update(common)
        if same or common:
            texts[row] = question
    for row, question in texts.items():
        same_as = exact.get(row, set())
        overlaps = {
            where for gram in shared.get(row, ()) if questions_with[gram] <= COMMON for where in index.grams[gram]
        }
        for number, one in enumerate(found.overlaps):
            equal = [position for file, position in same_as if file == number]
            alike = [position for file, position in overlaps if file == number]
            if equal or alike:
                one.exact += bool(equal)
                one.overlap += not equal
                one.example = one.example or (question, index.questions[number][min(equal or alike)])
                found.indexes.add(row)
    if progress:
        progress(total, total)
    return found


def remove(found: Contamination) -> int:
    """Take the rows that were found out of the training file, whole or not at all; its stamp, if it has one, says so.

    Returns how many. Raises ValueError if the file is not the one that was looked at any more.
    """
    path = found.training
    with lock(path):
        stamp = read_stamp(path)
        with replacing(path) as (partial, finish), pq.ParquetFile(path) as file:
            if file.metadata.num_rows != found.rows:
                raise ValueError(f"{path}: it was changed meanwhile; look again")
            start = 0
            with pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
                for batch in batches(file):
                    keep = [start + offset not in found.indexes for offset in range(batch.num_rows)]
                    start += batch.num_rows
                    kept = batch.filter(pa.array(keep))
                    if kept.num_rows:
                        writer.write_batch(kept)
            if len(found.indexes) == found.rows:
                raise ValueError(f"{path}: every row is in an evaluation set; nothing was removed")
            if stamp is not None:
                stamp = _stamped(stamp, found)
            finish(stamp)
    return len(found.indexes)


def _stamped(stamp: dict[str, Any], found: Contamination) -> dict[str, Any]:
    removed = stamp.setdefault("contamination_removed", {})
    for one in found.overlaps:
        if one.found:
            before = removed.get(one.evaluation, {"exact": 0, "overlap": 0})
            removed[one.evaluation] = {
                "exact": before["exact"] + one.exact,
                "overlap": before["overlap"] + one.overlap,
            }
    stamp["rows"]["written"] = found.rows - len(found.indexes)
    return stamp


def _questions(path: Path) -> Iterator[tuple[int, str]]:
    """(row, the user's question without our instruction, which every row has)."""
    with pq.ParquetFile(path) as file:
        row = 0
        for batch in batches(file, columns=["prompt"]):
            for prompt in batch.column(0).to_pylist():
                yield row, question_of(prompt[-1]["content"])
                row += 1


def exact_key(question: str) -> str:
    """Equal for questions that differ in case, white space and dollar signs only."""
    return _IGNORED.sub("", unicodedata.normalize("NFKC", question).casefold())


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; LaTeX's braces and backslashes are punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(text: str) -> Iterator[str]:
    """Every 13 words in a row."""
    found = words(text)
    for start in range(len(found) - WORDS + 1):
        yield " ".join(found[start : start + WORDS])
