"""What a whole rollout batch says about entropy: how large it is, what the paper's theorems expect of it, and Figure 8.

Over the rollout batch and not over one optimizer mini-batch, because a prompt's responses are dealt out over
mini-batches and ranks, and because what an update does to entropy is seen at the next rollout only. Everything
describes the policy pi that the rollouts were sampled from, at the rollout temperature.

Averages are the paper's (Eq. 5): the mean over the tokens of each response, then over responses. Each rank reduces its
responses to a few numbers; these travel once, so the result does not depend on how the rows are laid out.

Knows nothing about verl.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from verl_cov.collectives import gather_rows
from verl_cov.covariance import LARGEST
from verl_cov.identity import slots


@dataclass(frozen=True)
class Responses:
    """One number a response, of all ranks; each array is [responses] float64. Means are over a response's tokens.

    Args:
        log_prob: mean log-probability, nats.
        entropy: mean entropy of the next-token distribution, nats; NaN where the batch does not carry it.
        advantage: mean advantage.
        centred: mean of (log pi + H) A, the token's term of Theorem 2's covariance (see :func:`theorems`).
        weighted: mean of (log pi + H) pi A, its term of Theorem 1's.
        weight: mean of pi A.
        score: the response's reward before any baseline; NaN where the batch does not carry it.
        prompt: [responses] int64, equal for the responses of one prompt; 0 where the batch does not say.
    """

    log_prob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    advantage: NDArray[np.float64]
    centred: NDArray[np.float64]
    weighted: NDArray[np.float64]
    weight: NDArray[np.float64]
    score: NDArray[np.float64]
    prompt: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        lengths: Tensor,
        valid: Tensor,
        log_prob: Tensor,
        advantage: Tensor,
        entropy: Tensor | None,
        score: Tensor | None,
        prompt: Tensor | None,
        group: ProcessGroup | None = None,
    ) -> Responses:
        """Gather the rollout batch whose rows on this rank have ``lengths`` ([rows]) response slots each.

        Args:
            valid: [slots] bool; log_prob, advantage, entropy: [slots], row by row.
            score, prompt: [rows] float and int64.

        Responses without a valid token (padding rows) and tokens that are not finite take no part.
        """
        rows, _ = slots(lengths, valid.numel())
        state = torch.zeros_like(log_prob) if entropy is None else entropy.float()
        finite = log_prob.abs().lt(LARGEST) & advantage.abs().lt(LARGEST) & state.abs().lt(LARGEST)
        counted = valid & finite
        logp, adv, ent = (torch.where(counted, x, 0.0).double() for x in (log_prob, advantage, state))
        weight = logp.exp() * adv
        centred = logp + ent
        columns = torch.stack([counted.double(), logp, ent, adv, centred * adv, centred * weight, weight], 1)
        sums = torch.zeros(lengths.numel(), columns.shape[1], dtype=torch.float64, device=valid.device)
        sums.index_add_(0, rows, columns)
        means = sums[:, 1:] / sums[:, :1].clamp(min=1)
        missing = torch.full_like(means[:, 0], torch.nan)
        if entropy is None:
            means[:, 1] = missing
        table = torch.cat(
            [
                means.view(torch.int64),
                (missing if score is None else score.double()).view(torch.int64)[:, None],
                (torch.zeros_like(lengths) if prompt is None else prompt)[:, None],
                (sums[:, :1] > 0).long(),
            ],
            1,
        )
        gathered, present, _ = gather_rows(table, group)
        gathered, present = gathered.cpu().numpy(), present.cpu().numpy()
        gathered = gathered[present & (gathered[:, -1] == 1)]
        floats = np.ascontiguousarray(gathered[:, :7]).view(np.float64)
        log_prob_, entropy_, advantage_, centred_, weighted_, weight_, score_ = floats.T
        return cls(log_prob_, entropy_, advantage_, centred_, weighted_, weight_, score_, gathered[:, 7])


def entropies(responses: Responses) -> dict[str, float]:
    """``entropy`` with its standard error ``entropy_error``, and ``entropy_sampled``, all in nats per token.

    ``entropy`` is the paper's Eq. 5, exact over the vocabulary at every token; ``entropy_sampled`` estimates the same
    by -log pi of the sampled tokens. The standard error takes the prompts as independent, not the responses: by how
    much ``entropy`` would differ had other prompts been drawn.
    """
    if not responses.log_prob.size:
        return {}
    found = {"entropy_sampled": -responses.log_prob.mean()}
    if np.isfinite(responses.entropy).all():
        found["entropy"] = responses.entropy.mean()
        error = _cluster_error(responses.entropy, responses.prompt)
        if error is not None:
            found["entropy_error"] = error
    return {key: float(value) for key, value in found.items()}


def theorems(responses: Responses) -> dict[str, float]:
    """``theorem1`` and ``theorem2``: the entropy change, in nats per token, that a step of size 1 would cause.

    The theorems (paper Sec. 3.2; Theorem 1 for policy gradients, 2 for natural ones) say for each state s

        change of H(s) = -eta Cov_{a ~ pi(.|s)}(log pi(a|s), X(s, a)),     X = pi A (Theorem 1) or A (Theorem 2)

    and since the mean of log pi(a|s) over a is -H(s), (log pi + H(s)) X at the sampled token estimates that covariance
    without bias, state by state. Where the batch carries no entropies, the batch's mean takes the place of -H(s),
    as in the paper's Eq. 10: then it also holds what differs between states.
    """
    if not responses.log_prob.size:
        return {}
    one, two = responses.weighted.mean(), responses.centred.mean()
    if not np.isfinite(responses.entropy).all():
        mean = responses.log_prob.mean()
        one, two = one - mean * responses.weight.mean(), two - mean * responses.advantage.mean()
    return {"theorem1": -float(one), "theorem2": -float(two)}


def prompts(responses: Responses) -> dict[str, float]:
    """Figure 8: the covariance within each prompt's responses, averaged over prompts, in nats times advantage.

    A prompt is the state and a whole response the action; log pi is the response's mean log-probability (Eq. 9) and the
    statistic Cov(log pi, pi A) (Eq. 8), pi being exp of that mean. Prompts whose responses all have the same advantage
    teach nothing and are left out, as the paper's filter does.

    Returns ``prompt_cov`` and ``prompts`` (how many), and if the batch carries scores the same with ``_hard``,
    ``_medium`` and ``_easy``: the prompts whose mean score is in the lower, middle or upper third of the batch's range
    of scores. With 8 responses scored 0 or 1 these are 1-2, 3-5 and 6-7 right ones; the paper shows 1, 4 and 7. A
    covariance without a prompt is left out.
    """
    if not responses.log_prob.size or not responses.prompt.any():
        return {}
    _, prompt, sizes = np.unique(responses.prompt, return_inverse=True, return_counts=True)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(prompt, values) / sizes

    log_prob, advantage = responses.log_prob, responses.advantage
    weight = np.exp(log_prob) * advantage
    covariance = mean((log_prob - mean(log_prob)[prompt]) * (weight - mean(weight)[prompt]))
    low, high = np.full(sizes.size, np.inf), np.full(sizes.size, -np.inf)
    np.minimum.at(low, prompt, advantage)
    np.maximum.at(high, prompt, advantage)
    taught = high > low

    classes = {"": taught}
    score = responses.score
    span = score.max() - score.min() if np.isfinite(score).all() else 0.0
    if span > 0:
        # Rounded: a third that is worked out in two ways must not fall on both sides of a border.
        thirds = (3 * (mean(score) - score.min()) / span).round(9)
        classes["_hard"] = taught & (thirds < 1)
        classes["_medium"] = taught & (thirds >= 1) & (thirds <= 2)
        classes["_easy"] = taught & (thirds > 2)
    found = {}
    for name, mine in classes.items():
        found[f"prompts{name}"] = float(mine.sum())
        if mine.any():
            found[f"prompt_cov{name}"] = float(covariance[mine].mean())
    return found


def _cluster_error(values: NDArray[np.float64], cluster: NDArray[np.int64]) -> float | None:
    """Standard error of the mean of ``values`` whose clusters are independent; None if there are not two of them."""
    if not cluster.any():
        return None
    _, index = np.unique(cluster, return_inverse=True)
    deviations = np.bincount(index, values - values.mean())
    count = deviations.size
    if count < 2:
        return None
    return float(np.sqrt(np.square(deviations).sum() * count / (count - 1)) / values.size)
