"""The oracle: covariances, draws, weights and losses written down a second time, in numpy; no code of the package's.

The log-probs and the gradient come from the plain transformers model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

U = np.uint64
Array = npt.NDArray[Any]
Row = dict[str, Any]  # of a mini-batch, see verl_cov.selftest.engine.mini_batch


def mix(x: Array) -> Array:
    """SplitMix64 in numpy's unsigned arithmetic."""
    with np.errstate(over="ignore"):
        x = x + U(0x9E3779B97F4A7C15)
        x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
        return x ^ (x >> U(31))


def unsigned(x: Any) -> Array:
    return np.asarray(x, dtype=np.int64).view(np.uint64)


def bits(x: Any) -> Array:
    return unsigned(np.asarray(x, dtype=np.float32).view(np.int32).astype(np.int64))


def tickets(
    ids: Array, lengths: Array, log_prob: Array, advantage: Array, valid: Array, slots: Array, seed: int, step: int
) -> Array:
    """The hash of each response slot that draws go by: 55 bits of the seed, the step and the token's content.

    Args:
        ids, lengths: token ids of the packed sequences, and how many each has.
        log_prob, advantage, valid, slots: of the packed response slots, and how many each sequence has.
    """
    with np.errstate(over="ignore"):
        at = unsigned(_positions(slots))
        content = _sums(mix(mix(unsigned(ids)) + unsigned(_positions(lengths))), lengths)
        content = mix(content ^ mix(_sums(unsigned(valid), slots)))
        token = mix(mix(at) + mix(bits(log_prob)) + mix(bits(advantage)))
        content = content + _sums(np.where(valid, token, U(0)), slots)
        seen: Counter[int] = Counter()
        occurrence, used = np.zeros(len(slots), dtype=np.uint64), _sums(unsigned(valid), slots)
        for row in np.flatnonzero(used):
            occurrence[row] = seen[int(content[row])]
            seen[int(content[row])] += 1
        identity = mix(np.repeat(mix(content + occurrence), slots) + mix(at))
        key = mix(mix(unsigned([seed])) + unsigned([step]))
        return mix(identity ^ key) & U((1 << 55) - 1)


def _positions(lengths: Array) -> Array:
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _sums(values: Array, lengths: Array) -> Array:
    """Sums of the values of each row, modulo 2^64."""
    running, ends = np.concatenate([[U(0)], np.cumsum(values, dtype=np.uint64)]), np.cumsum(lengths)
    return running[ends] - running[ends - lengths]


def covariances(log_prob: Array, advantage: Array, valid: Array) -> Array:
    """Each token's covariance (paper Eq. 10) in float32, NaN where there is no finite token. Sums are exact."""
    x, a = (np.asarray(values, dtype=np.float64) for values in (log_prob, advantage))
    with np.errstate(invalid="ignore"):
        counted = np.asarray(valid, dtype=bool) & (np.abs(x) < 2.0**30) & (np.abs(a) < 2.0**30)
        # Multiples of 2^-24, so that the order of the sum changes nothing (docs/selection.md).
        centre = [
            int(np.rint(v[counted] * 2**24).astype(np.int64).sum()) / 2**24 / max(counted.sum(), 1) for v in (x, a)
        ]
        return np.where(counted, (x - centre[0]) * (a - centre[1]), np.nan).astype(np.float32)


def quota(ratio: float, tokens: int) -> int:
    """floor(ratio * tokens), at least 1, at most all."""
    return min(max(int(Fraction(repr(ratio)) * tokens), 1), tokens)


def largest(values: Array, count: int, ticket: Array) -> Array:
    """Marks the ``count`` largest; of equal ones those with the largest hash. NaN is no candidate."""
    candidates = np.flatnonzero(~np.isnan(values))
    count = min(count, len(candidates))
    mask = np.zeros(len(values), dtype=bool)
    if count:
        cut = np.partition(values[candidates], len(candidates) - count)[len(candidates) - count]
        mask[candidates] = values[candidates] > cut
        tied = candidates[values[candidates] == cut]
        mask[tied[np.argsort(ticket[tied])[::-1][: count - int(mask.sum())]]] = True
    return mask


def drawn(inside: Array, count: int, ticket: Array) -> Array:
    """Marks ``count`` of the candidates: those with the largest hashes."""
    mask, candidates = np.zeros(len(inside), dtype=bool), np.flatnonzero(inside)
    mask[candidates[np.argsort(ticket[candidates])[::-1][:count]]] = True
    return mask


# --- one mini-batch through a model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """What an update is to do: ``kl`` (KL-Cov), ``clip`` (Clip-Cov) or ``high_entropy`` (weights 1 and 0)."""

    kind: str
    ratio: float
    band: tuple[float, float] = (0.0, 0.0)
    coefficient: float = 0.0
    seed: int = 0
    step: int = 0
    current: bool = False  # by the present policy's log-probs


@dataclass(frozen=True)
class Expected:
    """Tokens as (row, position), the loss, the mean size of a token's loss, and the gradient by the parameters."""

    chosen: set[tuple[int, int]]
    loss: float
    magnitude: float
    gradient: Array


def expected(model: Any, rows: Sequence[Row], control: Control) -> Expected:
    """What one optimizer step on the mini-batch ``rows`` must select and give, whatever its layout."""
    import torch

    model.zero_grad()
    chosen, loss, magnitude = update(rows, [model_log_probs(model, row) for row in rows], control)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return Expected(chosen, float(loss.detach()), magnitude, gradient.double().numpy())


def model_log_probs(model: Any, row: Row) -> Tensor:
    """[response] log-probs of the plain transformers model, with gradient."""
    import torch

    ids = torch.from_numpy(np.concatenate([row["prompt"], row["response"]]))
    logits = model(ids[None]).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, ids[1:, None])[len(row["prompt"]) - 1 :, 0]


def update(
    rows: Sequence[Row], log_probs: Sequence[Tensor], control: Control
) -> tuple[set[tuple[int, int]], Tensor, float]:
    """(chosen tokens, loss, mean magnitude of the token losses) of one mini-batch, whatever model gave the log-probs.

    log_probs: [response] of each row, with gradient.
    """
    import torch

    tokens = [(at, int(position)) for at, row in enumerate(rows) for position in np.flatnonzero(row["mask"])]
    current = np.array([float(log_probs[row][at].detach()) for row, at in tokens])
    old, advantage, entropy = (
        np.array([rows[row][name][at] if name in rows[row] else 0.0 for row, at in tokens])
        for name in ("old_log_prob", "advantage", "entropy")
    )
    if control.kind == "high_entropy":
        order = np.argsort(-entropy, kind="stable")[quota(control.ratio, len(tokens)) :]
        mask = np.zeros(len(tokens), dtype=bool)
        mask[order] = True  # those that lose their weight
    else:
        cov = covariances(current if control.current else old, advantage, np.ones(len(tokens), dtype=bool))
        ticket, count = _tickets_of(rows, control), quota(control.ratio, len(tokens))
        inside = (cov > control.band[0]) & (cov < control.band[1])
        mask = largest(cov, count, ticket) if control.kind == "kl" else drawn(inside, count, ticket)
    chosen = {(rows[row]["index"], at) for (row, at), on in zip(tokens, mask, strict=True) if on}

    total, magnitude = torch.zeros(()), 0.0
    for i, (row, at) in enumerate(tokens):
        log_prob, a = log_probs[row][at], float(advantage[i])
        if control.kind == "high_entropy":  # verl's gpg: every token has a gradient
            loss = -(0.0 if mask[i] else a) * log_prob
        else:
            x = (log_prob.detach() if control.kind == "clip" and mask[i] else log_prob) - float(old[i])
            ratio = x.clamp(-20, 20).exp()
            if control.kind == "kl":
                loss = -a * ratio + (control.coefficient * x.abs() if mask[i] else 0.0)
            else:  # verl's vanilla loss with the clip at [0, 2] and the dual clip at 3
                loss = torch.maximum(-a * ratio, -a * ratio.clamp(0, 2))
                loss = torch.minimum(loss, torch.tensor(-a * 3.0)) if a < 0 else loss
        total, magnitude = total + loss, magnitude + abs(float(loss.detach()))
    return chosen, total / len(tokens), magnitude / len(tokens)


def _tickets_of(rows: Sequence[Row], control: Control) -> Array:
    """The hashes of the valid tokens, row by row."""
    valid, log_prob, advantage = (
        np.concatenate([row[name] for row in rows]) for name in ("mask", "old_log_prob", "advantage")
    )
    ids = [np.concatenate([row["prompt"], row["response"]]) for row in rows]
    lengths, slots = np.array([len(each) for each in ids]), np.array([len(row["mask"]) for row in rows])
    on = valid.astype(bool)
    return tickets(np.concatenate(ids), lengths, log_prob, advantage, on, slots, control.seed, control.step)[on]
