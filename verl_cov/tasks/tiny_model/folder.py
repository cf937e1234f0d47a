"""The tiny model's folder: built once for its settings, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from verl_cov.tasks import model_folder
from verl_cov.tasks.tiny_model.byte_tokenizer import tokenizer
from verl_cov.tasks.tiny_model.measuring import measure
from verl_cov.tasks.tiny_model.model import DEFAULT, Settings, new_model
from verl_cov.tasks.tiny_model.pretraining import pretrain

FORMAT = 3  # raise it when the same settings would give another model: it is part of the fingerprint
REPORT = "tiny_model.json"  # in the folder: fingerprint, settings, and what was measured


def fingerprint(settings: Settings) -> str:
    """A name for the model that `settings` give, by which the folder is found to be up to date."""
    text = json.dumps([FORMAT, settings.rules.FORMAT, asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(directory: str | os.PathLike[str], *, settings: Settings = DEFAULT) -> Path:
    """Build the model in `directory`, unless it is there already with these settings. Returns the directory.

    Raises as `model_folder.make`, for a folder that holds something else.
    """

    def fill(made: Path) -> dict[str, Any]:
        started = time.monotonic()
        model = new_model(settings)
        with one_thread():
            pretrain(model, settings)
            measured: dict[str, Any] = measure(model, settings)
        measured["seconds"] = round(time.monotonic() - started, 1)
        model.save_pretrained(made)
        tokenizer().save_pretrained(made)
        return {"measured": measured, "settings": asdict(settings)}

    return model_folder.make(directory, REPORT, fingerprint(settings), fill)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread.

    More threads give other bits (the order of float sums) and hardly more speed on matrices so small. On a busy machine
    they make the training take five times as long, since they wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
