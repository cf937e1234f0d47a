"""Finds training questions that are also in an evaluation set, and removes them.

Two tests, each linear in the training file:

- exact: the questions are the same characters, apart from case, white space and dollar signs;
- overlap: they share 13 words in a row, as in GPT-3's study (Brown et al. 2020, Appendix C; the convention since):
  words are lower case and without punctuation, and a 13-gram that more than 10 training questions have is a common
  phrase and does not count. Each Chinese, Japanese or Korean character is a word.

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

import pyarrow as pa
import pyarrow.parquet as pq

from verl_cov.tasks.data.rows import batches, check_file, question_of
from verl_cov.tasks.data.stamped_file import Stamp, lock, read_stamp, replacing

WORDS = 13
COMMON = 10  # a 13-gram in more training questions than this is a common phrase

# \w without the underscore, and one East Asian character at a time.
_EAST_ASIAN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+")
_IGNORED = re.compile(r"[\s$]+")


@dataclass
class Overlap:
    """How many questions of a training file are in one evaluation file, by each test.

    A question that both tests find counts as exact. example: (training question, evaluation question).
    """

    evaluation: str
    exact: int = 0
    overlap: int = 0
    example: tuple[str, str] | None = None

    @property
    def total(self) -> int:
        """How many training questions either test found."""
        return self.exact + self.overlap


@dataclass
class Contamination:
    """A training file's overlap with each evaluation file; `indexes` are its rows (from 0) that are in any of them."""

    training: Path
    rows: int
    overlaps: list[Overlap]
    indexes: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Index:
    """The questions of the evaluation files, by their exact key and by their 13-grams, as (file, question) numbers."""

    names: list[str]
    questions: list[list[str]]
    exact: dict[str, list[tuple[int, int]]]
    grams: dict[str, list[tuple[int, int]]]


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(training files, evaluation files), by extra_info.split; each file once, under the first path that names it.

    Raises ValueError for a file that breaks the schema, or if one of the two lists would be empty.
    """
    training: list[Path] = []
    evaluation: list[Path] = []
    by_target: dict[Path, Path] = {}
    for path in files:
        by_target.setdefault(path.resolve(), path)
    for path in by_target.values():
        splits = check_file(path).splits
        (training if "train" in splits else evaluation).append(path)
    if not training or not evaluation:
        missing = "training" if not training else "evaluation"
        raise ValueError(f"no {missing} file among {', '.join(map(str, files))} (extra_info.split says which is which)")
    return training, evaluation


def find(
    training: Sequence[Path], evaluation: Sequence[Path], progress: Callable[[int, int], None] | None = None
) -> Iterator[Contamination]:
    """For each training file, its rows that are in evaluation files.

    The evaluation files are read once; memory holds the 13-grams of their questions.
    """
    index = _index(evaluation)
    for path in training:
        yield _find(path, index, progress)


def _index(evaluation: Sequence[Path]) -> _Index:
    index = _Index([path.stem for path in evaluation], [], {}, {})
    for number, path in enumerate(evaluation):
        distinct = list(dict.fromkeys(question for _, question in _questions(path)))  # each copied question once
        index.questions.append(distinct)
        for position, question in enumerate(distinct):
            where = (number, position)
            index.exact.setdefault(exact_key(question), []).append(where)
            for gram in set(grams(question)):
                index.grams.setdefault(gram, []).append(where)
    return index


def _find(training: Path, index: _Index, progress: Callable[[int, int], None] | None) -> Contamination:
    total = pq.read_metadata(training).num_rows
    report = Contamination(training, total, [Overlap(name) for name in index.names])
    # Which of the evaluation's 13-grams are common is known only at the end, so the few rows that have one are kept.
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
        overlapping = {
            where for gram in shared.get(row, ()) if questions_with[gram] <= COMMON for where in index.grams[gram]
        }
        for number, overlap in enumerate(report.overlaps):
            equal = [position for file, position in same_as if file == number]
            alike = [position for file, position in overlapping if file == number]
            if equal or alike:
                overlap.exact += bool(equal)
                overlap.overlap += not equal
                overlap.example = overlap.example or (question, index.questions[number][min(equal or alike)])
                report.indexes.add(row)
    if progress:
        progress(total, total)
    return report


def remove(report: Contamination) -> int:
    """Remove the rows that were found from the training file, all or none, and count them in its stamp, if it has one.

    Returns how many. Raises ValueError if the file has changed since, or if no row would be left.
    """
    path = report.training
    with lock(path):
        stamp = read_stamp(path)
        with replacing(path) as (partial, finish), pq.ParquetFile(path) as file:
            if file.metadata.num_rows != report.rows:
                raise ValueError(f"{path}: the file has changed meanwhile; run the command again")
            start = 0
            with pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
                for batch in batches(file):
                    keep = [start + offset not in report.indexes for offset in range(batch.num_rows)]
                    start += batch.num_rows
                    kept = batch.filter(pa.array(keep))
                    if kept.num_rows:
                        writer.write_batch(kept)
            if len(report.indexes) == report.rows:
                raise ValueError(f"{path}: every row is in an evaluation set; nothing was removed")
            if stamp is not None:
                stamp = _stamped(stamp, report)
            finish(stamp)
    return len(report.indexes)


def _stamped(stamp: Stamp, report: Contamination) -> Stamp:
    removed = stamp.setdefault("contamination_removed", {})
    for overlap in report.overlaps:
        if overlap.total:
            before = removed.get(overlap.evaluation, {"exact": 0, "overlap": 0})
            removed[overlap.evaluation] = {
                "exact": before["exact"] + overlap.exact,
                "overlap": before["overlap"] + overlap.overlap,
            }
    stamp["rows"]["written"] = report.rows - len(report.indexes)
    return stamp


def _questions(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (row, the user's question), without our instruction, which every row has."""
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
    """Each sequence of 13 words in the text."""
    in_order = words(text)
    for start in range(len(in_order) - WORDS + 1):
        yield " ".join(in_order[start : start + WORDS])
