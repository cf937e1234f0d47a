"""Reads a training's log: which phase it is in and, if it failed, the error that began it.

The log mixes the output of verl, Ray and vLLM: lines carry colours and their process (`(WorkerDict pid=12)`), and
progress bars overwrite themselves with carriage returns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The last phase whose mark has appeared. It never goes back: late lines of an earlier phase mean nothing.
PHASES: tuple[tuple[str, re.Pattern[str] | None], ...] = (
    ("importing verl", None),
    ("starting Ray", re.compile(r"ray init kwargs")),
    ("starting workers", re.compile(r"Started a local Ray instance")),
    ("loading the model", re.compile(r"\(WorkerDict pid=")),
    ("starting vLLM", re.compile(r"\((?:vLLMHttpServer|EngineCore\w*) pid=")),
    ("validating", re.compile(r"Creating file logger at")),
    ("training", re.compile(r"Training Progress:")),
)
_TOTAL = re.compile(r"Total training steps: (\d+)|Training Progress:[^\n\r]*?\d+/(\d+)")

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"(?:\([^()]*pid=\d+[^()]*\)\s?)+")
_VLLM = re.compile(r"(?:ERROR|WARNING|INFO|CRITICAL|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
_FRAME = re.compile(r'\s+File "[^"]*", line \d+')
_RAISED = re.compile(r"([A-Za-z_][\w.]*)(?:\([\w.]*\))?(?::|$)")
_LINK = re.compile(r"The above exception was the direct cause|During handling of the above exception")
# What the other processes print after one has failed, and how they are told to stop: never the cause.
_ECHO = re.compile(
    r"ray\.exceptions\.|KeyboardInterrupt|SystemExit|BrokenPipeError|ConnectionResetError|EOFError"
    r"|(?:asyncio\.|concurrent\.)?[\w.]*CancelledError"
)


class LogTail:
    """Follows one launch in train.log, from offset `start` on. total: training steps, once the log says so."""

    def __init__(self, path: Path, start: int):
        self._path, self._size, self._rest = path, start, ""
        self._phase = 0
        self.total: int | None = None

    @property
    def phase(self) -> str:
        return PHASES[self._phase][0]

    def poll(self) -> str:
        """Read and return what is new."""
        with self._path.open("rb") as file:
            file.seek(self._size)
            raw = file.read()
        self._size += len(raw)
        fresh = raw.decode(errors="replace")
        # At \r too: a progress bar may go without a newline for hours. Half a line waits for its rest.
        *lines, self._rest = re.split(r"[\r\n]", self._rest + fresh)
        for line in lines:
            self._take(_ANSI.sub("", line))
        return fresh

    def _take(self, line: str) -> None:
        for index in range(len(PHASES) - 1, self._phase, -1):
            mark = PHASES[index][1]
            if mark is not None and mark.search(line):
                self._phase = index
                break
        if match := _TOTAL.search(line):
            self.total = int(match[1] or match[2])


@dataclass
class _Error:
    line: int  # of the log, from 1
    text: list[str]  # the exception's line and what follows it
    frames: list[str]
    chain: int  # errors raised while handling one another share it
    driver: bool

    @property
    def echo(self) -> bool:
        return bool(_ECHO.match(self.text[0]))


def first_error(log: str) -> tuple[int, list[str]] | None:
    """Find the exception that ended the training: (its line number from 1, lines to show); None without a traceback.

    The driver's last traceback tells which error ended the training, and its chain tells where that error began. Ray's
    own exceptions are only echoes: if the driver has nothing else (a worker died), the first other exception counts.
    """
    errors = _errors(log)
    if not errors:
        return None
    driver = [error for error in errors if error.driver]
    real = [error for error in errors if not error.echo]
    last = next((error for error in reversed(driver) if not error.echo), None)
    if last is not None:
        root = next(error for error in real if error.driver and error.chain == last.chain)
    else:
        root, last = (real or errors)[0], (driver or errors)[-1]
    shown = root.frames[-4:] + root.text
    if last.text != root.text:
        shown += ["which led to:", *last.text]
    return root.line, shown


def _errors(log: str) -> list[_Error]:
    """The exceptions at the end of tracebacks, in the log's order. Processes interleave, so each is read by itself."""
    streams: dict[str, list[tuple[int, str]]] = {}
    for number, raw in enumerate(re.split(r"\r?\n", log), 1):
        line = _ANSI.sub("", raw).rsplit("\r", 1)[-1].rstrip()
        process = prefix[0] if (prefix := _PROCESS.match(line)) else ""
        line = line[len(process) :]
        streams.setdefault(process.strip(), []).append((number, _VLLM.sub("", line, count=1)))
    chain = 0
    errors: list[_Error] = []
    for process, lines in streams.items():
        frames: list[str] = []
        linked = False
        open_error: _Error | None = None  # its message may go on
        for number, line in lines:
            if line.startswith("Traceback (most recent call last)"):
                chain += not linked
                frames, linked, open_error = [], False, None
            elif _LINK.match(line):
                linked, open_error = True, None
            elif _FRAME.match(line) or (frames and line.startswith("    ")):
                if not line.strip(" ^~"):
                    continue  # the carets under an expression
                frames.append(line)
                open_error = None
            elif not line.strip():
                open_error = None
            elif frames and _RAISED.match(line) and not line.startswith("ray::"):
                open_error = _Error(number, [line], frames, chain, driver=not process)
                errors.append(open_error)
                frames, linked = [], False
            elif open_error is not None and len(open_error.text) < 6:
                open_error.text.append(line)
    return sorted(errors, key=lambda error: error.line)
