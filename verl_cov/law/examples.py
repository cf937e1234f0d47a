"""Example data: the paper's own laws, of Qwen2.5 on mathematics, 0.5B to 32B (data/qwen2.5-math.csv), and a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from verl_cov.law.fit import Array
from verl_cov.law.points import ENTROPY_KEY
from verl_cov.law.readers import Run

_NOISE = 0.009  # the paper's root mean squared error in mathematics (Fig. 5)
RUN_NOTE = (
    "This run is synthetic: the curve of Qwen2.5-7B in the paper's figure, validated every 4 of 240 steps, with random "
    "noise of 0.9 points."
)


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


def run(seed: int = 0) -> Run:
    """A synthetic run (`RUN_NOTE`), as verl logs it: the validation after step n belongs to the entropy of n + 1."""
    law = next(law for law in qwen25_math() if law.model == "Qwen2.5-7B")
    last, every = 240, 4
    entropy, score = law.curve(last + 1)
    score = score + _NOISE * np.random.default_rng(seed).standard_normal(last + 1)
    records: list[dict[str, object]] = [{} for _ in range(last + 2)]
    for step in range(last + 1):
        records[step + 1][ENTROPY_KEY] = float(entropy[step])
        if step % every == 0:
            records[step]["val-core/math/acc/mean@1"] = float(score[step])
    return Run(np.arange(last + 2), tuple(records))
