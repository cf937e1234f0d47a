"""Measures a whole rollout batch: its entropy, the entropy change that the theorems predict, and Figure 8.

The batch is the rollout's and not one optimizer mini-batch, because a prompt's responses are spread over mini-batches
and ranks, and because the effect of an update on entropy shows only at the next rollout. Everything describes the
policy pi that the rollouts were sampled from, at the rollout temperature.

Averages are the paper's (Eq. 5): the mean over the tokens of each response, then over responses. Each rank reduces its
rows to a few numbers, which are gathered once, so the result does not depend on the layout of the rows. The trap: a row
is no response where an agent loop gives several outputs in a session; all of them are one response.

Knows nothing about verl.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import gather_rows
from verl_cov.core.covariance import LARGEST, parts
from verl_cov.core.identity import slots


@dataclass(frozen=True)
class Responses:
    """A few numbers for each response of all ranks. Means are over a response's tokens.

    Args:
        log_prob: mean log-prob, in nats.
        advantage: mean advantage A.
        weight: mean of pi A.
        log_prob_advantage, log_prob_weight: mean of log pi A and of log pi pi A.
        entropy: mean entropy H of the next-token distribution, in nats; NaN where the batch does not carry it.
        entropy_advantage, entropy_weight: mean of H A and of H pi A; NaN where ``entropy`` is.
        score: the response's reward before any baseline, the highest of its rows; NaN where the batch does not carry
            it.
        prompt: equal for the responses to one prompt; 0 where the batch does not carry it.
    """

    log_prob: Float64[np.ndarray, " responses"]
    advantage: Float64[np.ndarray, " responses"]
    weight: Float64[np.ndarray, " responses"]
    log_prob_advantage: Float64[np.ndarray, " responses"]
    log_prob_weight: Float64[np.ndarray, " responses"]
    entropy: Float64[np.ndarray, " responses"]
    entropy_advantage: Float64[np.ndarray, " responses"]
    entropy_weight: Float64[np.ndarray, " responses"]
    score: Float64[np.ndarray, " responses"]
    prompt: Int64[np.ndarray, " responses"]

    @property
    def has_entropy(self) -> bool:
        """True if every response has an exact entropy. If one lacks it, all are estimated: the two are never mixed."""
        return bool(self.entropy.size) and bool(np.isfinite(self.entropy).all())

    @classmethod
    def gather(cls, table: Int64[Tensor, "rows 12"], group: ProcessGroup | None = None) -> Responses:
        """Gathers the rollout batch of all ranks, each of which gives its :func:`row_sums`.

        Responses without a valid token (padding rows) are left out.
        """
        gathered, present, _ = gather_rows(table, group)
        gathered, present = gathered.cpu().numpy(), present.cpu().numpy()
        floats, (prompt, response) = np.ascontiguousarray(gathered[:, :-2]).view(np.float64), gathered[:, -2:].T
        kept = present & (floats[:, 0] > 0)
        floats, prompt, response = floats[kept], prompt[kept], response[kept]
        # A row that names no response is one: a number of its own.
        response = np.where(response == 0, -1 - np.arange(response.size), response)
        _, first, at = np.unique(response, return_index=True, return_inverse=True)
        sums, score = np.zeros((first.size, floats.shape[1] - 1)), np.full(first.size, -np.inf)
        np.add.at(sums, at, floats[:, :-1])
        with np.errstate(invalid="ignore"):  # NaN where the batch has no scores
            np.maximum.at(score, at, floats[:, -1])
        columns = [*(sums[:, 1:] / sums[:, :1]).T, score, prompt[first]]
        return cls(*columns)


def row_sums(
    lengths: Int64[Tensor, " rows"],
    valid: Bool[Tensor, " slots"],
    log_prob: Float32[Tensor, " slots"],
    advantage: Float32[Tensor, " slots"],
    entropy: Float[Tensor, " slots"] | None,
    score: Float[Tensor, " rows"] | None,
    prompt: Int64[Tensor, " rows"] | None,
    response: Int64[Tensor, " rows"] | None = None,
) -> Int64[Tensor, "rows 12"]:
    """Adds up what :class:`Responses` needs over each row of this rank; uses no collectives.

    Tokens whose log-prob or advantage is not finite are left out.

    Args:
        lengths: response slots of each row.
        response: equal for the rows that one response consists of (an agent loop may give several outputs in a
            session), on whatever rank; None where each row is a response.

    Returns:
        For each row the number of tokens, eight sums and the score, which are the bits of float64; prompt; response.
    """
    rows, _ = slots(lengths, valid.numel())
    sums = torch.zeros(lengths.numel(), 9, dtype=torch.float64, device=valid.device)
    for part in parts(valid):  # in parts: the columns of a large rollout would take ten times its memory
        finite = log_prob[part].abs().lt(LARGEST) & advantage[part].abs().lt(LARGEST)
        counted = valid[part] & finite
        logp, adv = (torch.where(counted, x[part], 0.0).double() for x in (log_prob, advantage))
        ent = torch.where(counted, torch.nan if entropy is None else entropy[part].double(), 0.0)
        weight = logp.exp() * adv
        columns = [counted, logp, adv, weight, logp * adv, logp * weight, ent, ent * adv, ent * weight]
        sums.index_add_(0, rows[part], torch.stack([column.double() for column in columns], 1))
    if score is None:
        score = torch.full_like(sums[:, 0], torch.nan)
    names = [torch.zeros_like(lengths) if name is None else name for name in (prompt, response)]
    return torch.cat([torch.cat([sums, score.double()[:, None]], 1).view(torch.int64), torch.stack(names, 1)], 1)


def entropies(responses: Responses) -> dict[str, float]:
    """Computes ``entropy``, its standard error ``entropy_error``, and ``entropy_sampled``, all in nats per token.

    ``entropy`` is the paper's Eq. 5, exact over the vocabulary at every token; ``entropy_sampled`` estimates it by
    -log pi of the sampled tokens. The standard error treats prompts, not responses, as independent: by how much
    ``entropy`` would differ had other prompts been drawn.
    """
    if not responses.log_prob.size:
        return {}
    values = {"entropy_sampled": -responses.log_prob.mean()}
    if responses.has_entropy:
        values["entropy"] = responses.entropy.mean()
        error = _cluster_covariance(responses.entropy, responses.entropy, responses.prompt)
        if error is not None:
            values["entropy_error"] = np.sqrt(error)
    return {key: float(value) for key, value in values.items()}


@dataclass(frozen=True)
class Theorem:
    """A theorem's prediction for the updates made with a rollout batch.

    Args:
        change: entropy change, in nats per token, that a step of size 1 would cause.
        shared_noise: covariance, over draws of the prompts, of ``change`` and the batch's own entropy. The trap: both
            come from the same responses, so a batch that happens to hold high-entropy prompts shifts both, and with
            them the change measured from this batch to the next. They would correlate even if nothing were learned;
            :mod:`.entropy_change` subtracts that.
    """

    change: float
    shared_noise: float


def theorems(responses: Responses) -> dict[str, Theorem]:
    """Computes the predictions ``theorem1`` and ``theorem2``; none for a batch without responses.

    The theorems (paper Sec. 3.2; Theorem 1 for policy gradients, 2 for natural ones) say for each state s

        change of H(s) = -eta Cov_{a ~ pi(.|s)}(log pi(a|s), X(s, a)),     X = pi A (Theorem 1) or A (Theorem 2)

    and since the mean of log pi(a|s) over a is -H(s), (log pi + H(s)) X at the sampled token estimates that covariance
    without bias, state by state. Where the batch carries no entropies, the batch's mean log-prob replaces -H(s),
    as in the paper's Eq. 10; the estimate then includes differences between states.
    """
    if not responses.log_prob.size:
        return {}
    if responses.has_entropy:
        entropy = responses.entropy
        pi_advantage = responses.log_prob_weight + responses.entropy_weight
        advantage = responses.log_prob_advantage + responses.entropy_advantage
    else:
        entropy = -responses.log_prob
        pi_advantage = responses.log_prob_weight + entropy.mean() * responses.weight
        advantage = responses.log_prob_advantage + entropy.mean() * responses.advantage
    return {
        name: Theorem(-float(x.mean()), -(_cluster_covariance(x, entropy, responses.prompt) or 0.0))
        for name, x in (("theorem1", pi_advantage), ("theorem2", advantage))
    }


def prompts(responses: Responses) -> dict[str, float]:
    """Computes Figure 8: the covariance within each prompt's responses, averaged over prompts, in nats times advantage.

    The prompt is the state and a whole response the action. log pi is the response's mean log-prob (Eq. 9), pi its exp,
    and the statistic is Cov(log pi, pi A) (Eq. 8). Prompts whose responses all have the same advantage are left out, as
    by the paper's filter: nothing is learned from them.

    Returns ``prompt_cov`` and ``prompts`` (how many). If each response is right or wrong (the batch has exactly two
    different scores; the higher is right), also the same with ``_hard``, ``_medium`` and ``_easy``: prompts of whose
    responses less than a third, a third to two thirds, or more are right. Of 8 responses these are 1-2, 3-5 and 6-7;
    the paper shows 1, 4 and 7. The covariance of a class without prompts is left out.
    """
    if not responses.log_prob.size or not responses.prompt.any():
        return {}
    _, prompt, sizes = np.unique(responses.prompt, return_inverse=True, return_counts=True)

    def mean(values: Float64[np.ndarray, " responses"]) -> Float64[np.ndarray, " prompts"]:
        return np.bincount(prompt, values) / sizes

    log_prob, advantage = responses.log_prob, responses.advantage
    weight = np.exp(log_prob) * advantage
    covariance = mean((log_prob - mean(log_prob)[prompt]) * (weight - mean(weight)[prompt]))
    low, high = np.full(sizes.size, np.inf), np.full(sizes.size, -np.inf)
    np.minimum.at(low, prompt, advantage)
    np.maximum.at(high, prompt, advantage)
    taught = high > low

    classes = {"": taught}
    if np.unique(responses.score).size == 2:
        right = (responses.score == responses.score.max()).astype(np.float64)
        # Counts and not 3 * mean(right): an inexact third could fall on the wrong side.
        thirds = 3 * np.bincount(prompt, right)
        classes["_hard"] = taught & (thirds < sizes)
        classes["_medium"] = taught & (thirds >= sizes) & (thirds <= 2 * sizes)
        classes["_easy"] = taught & (thirds > 2 * sizes)
    values = {}
    for name, members in classes.items():
        values[f"prompts{name}"] = float(members.sum())
        if members.any():
            values[f"prompt_cov{name}"] = float(covariance[members].mean())
    return values


def _cluster_covariance(
    x: Float64[np.ndarray, " responses"],
    y: Float64[np.ndarray, " responses"],
    cluster: Int64[np.ndarray, " responses"],
) -> float | None:
    """Estimates the covariance of the means of ``x`` and ``y`` over draws of independent clusters.

    None with fewer than two clusters.
    """
    if not cluster.any():
        return None
    _, index = np.unique(cluster, return_inverse=True)
    deviations = (np.bincount(index, values - values.mean()) for values in (x, y))
    products = np.multiply(*deviations)
    count = products.size
    if count < 2:
        return None
    return float(products.sum() * count / (count - 1) / x.size**2)
