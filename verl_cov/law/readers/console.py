"""What a terminal or a job wrote: verl's `console` logger (`dashes`), or dictionaries that trainers print (`dicts`).

Such a log is a terminal's or a job's whole output, so the records are mixed with everything else:

- Ray puts `(TaskRunnerV1 pid=123, ip=10.0.0.2)` and colours before a line; progress bars overwrite themselves with
  carriage returns, and no line feed separates them from a record on the same line;
- other processes' lines come between records, or tear one apart. The rest of a torn record is kept, without the value
  at the tear, and the record is counted as damaged;
- loggers and job systems cut lines off, terminals wrap them.

The file is read in pieces, and only the records are kept. If there are records of verl's, dictionaries are not read:
they are a configuration, or what a model wrote.
"""

from __future__ import annotations

from pathlib import Path

from verl_cov.law.readers import dashes, dicts
from verl_cov.law.readers.lines import lines
from verl_cov.law.readers.packed import open_log
from verl_cov.law.readers.run import Records, Tell


def records(path: Path, tell: Tell) -> Records:
    """The records of one log, each followed by None if a part of it could not be read."""
    verl, others = dashes.Dashes(), dicts.Dictionaries()
    with open_log(path) as file:
        for line, ended in lines(file, tell):
            if not verl.feed(line, ended) and not verl.found:
                others.feed(line, ended)
    yield from verl.records()
    if not any(one.alone.data for one in verl.found):
        yield from others.records()


def has_record(path: Path, within: int = 64 << 20, dictionaries: bool = True) -> bool:
    """Whether there is a record in the first `within` bytes. (verl prints megabytes while it starts.) dictionaries:
    whether those count."""
    position = 0

    def tell(done: int) -> None:
        nonlocal position
        position = done

    with open_log(path) as file:
        for line, _ in lines(file, tell):
            if position > within:
                return False
            if dashes.is_record(line) or (dictionaries and dicts.is_record(line)):
                return True
    return False
