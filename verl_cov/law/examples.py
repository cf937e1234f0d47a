"""The paper's own laws as example data: Qwen2.5 on mathematics, 0.5B to 32B (data/qwen2.5-math.csv)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from verl_cov.law.fit import Array


@dataclass(frozen=True)
class PaperLaw:
    """One model's law. parameters: non-embedding, in billions. a, b: accuracies from 0 to 1, read off a figure to about
    0.003. entropy_first, entropy_last: nats per token, where the drawn curve begins and ends."""

    model: str
    parameters: float
    a: float
    b: float
    entropy_first: float
    entropy_last: float

    def curve(self, n: int = 14) -> tuple[Array, Array]:
        """(entropy, score), each [n], along the drawn curve. It is the authors' fitted curve and not their data: it has
        no scatter, and says nothing of how well the law holds."""
        entropy = np.geomspace(self.entropy_first, self.entropy_last, n)
        return entropy, self.b - self.a * np.exp(entropy)


def qwen25_math() -> list[PaperLaw]:
    """The five models, by size."""
    text = files("verl_cov.law").joinpath("data/qwen2.5-math.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [PaperLaw(row.pop("model"), **{key: float(value) for key, value in row.items()}) for row in rows]
