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

from verl_cov.core.collectives import gather_rows
from verl_cov.core.covariance import LARGEST, parts
from verl_cov.core.identity import slots


@dataclass(frozen=True)
class Responses:
    """One number a response, of all ranks; each array is [responses] float64. Means are over a response's tokens.

    Args:
        log_prob: mean log-probability, nats. advantage: mean advantage A.
        weight: mean of pi A.
        log_prob_advantage, log_prob_weight: mean of log pi A and of log pi pi A.
        entropy: mean entropy H of the next-token distribution, nats; NaN where the batch does not carry it.
        entropy_advantage, entropy_weight: mean of H A and of H pi A; NaN likewise.
        score: the response's reward before any baseline; NaN where the batch does not carry it.
        prompt: [responses] int64, equal for the responses of one prompt; 0 where the batch does not say.
    """

    log_prob: NDArray[np.float64]
    advantage: NDArray[np.float64]
    weight: NDArray[np.float64]
    log_prob_advantage: NDArray[np.float64]
    log_prob_weight: NDArray[np.float64]
    entropy: NDArray[np.float64]
    entropy_advantage: NDArray[np.float64]
    entropy_weight: NDArray[np.float64]
    score: NDArray[np.float64]
    prompt: NDArray[np.int64]

    @property
    def has_entropy(self) -> bool:
        """True if every response has an exact entropy. One that lacks it makes all fall back: no mix of two kinds."""
        return bool(self.entropy.size) and bool(np.isfinite(self.entropy).all())

    @classmethod
    def gather(
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

        Responses without a valid token (padding rows) and tokens without a finite log-prob or advantage take no part.
        """
        rows, _ = slots(lengths, valid.numel())
        sums = torch.zeros(lengths.numel(), 9, dtype=torch.float64, device=valid.device)
        for part in parts(valid):  # or the columns of a large rollout would take ten times its memory
            finite = log_prob[part].abs().lt(LARGEST) & advantage[part].abs().lt(LARGEST)
            counted = valid[part] & finite
            logp, adv = (torch.where(counted, x[part], 0.0).double() for x in (log_prob, advantage))
            if entropy is None:
                ent = torch.full_like(logp, torch.nan)
            else:
                ent = torch.where(counted, entropy[part].double(), 0.0)
            weight = logp.exp() * adv
            columns = [counted, logp, adv, weight, logp * adv, logp * weight, ent, ent * adv, ent * weight]
            sums.index_add_(0, rows[part], torch.stack([column.double() for column in columns], 1))
        means = sums[:, 1:] / sums[:, :1].clamp(min=1)
        if score is None:
            score = torch.full_like(means[:, 0], torch.nan)
        table = torch.cat(
            [
                torch.cat([means, score.double()[:, None]], 1).view(torch.int64),
                (torch.zeros_like(lengths) if prompt is None else prompt)[:, None],
                (sums[:, :1] > 0).long(),
            ],
            1,
        )
        gathered, present, _ = gather_rows(table, group)
        gathered, present = gathered.cpu().numpy(), present.cpu().numpy()
        gathered = gathered[present & (gathered[:, -1] == 1)]
        floats = np.ascontiguousarray(gathered[:, :-2]).view(np.float64)
        columns = [*floats.T, gathered[:, -2]]
        return cls(*columns)


def entropies(responses: Responses) -> dict[str, float]:
    """``entropy`` with its standard error ``entropy_error``, and ``entropy_sampled``, all in nats per token.

    ``entropy`` is the paper's Eq. 5, exact over the vocabulary at every token; ``entropy_sampled`` estimates the same
    by -log pi of the sampled tokens. The standard error takes the prompts as independent, not the responses: by how
    much ``entropy`` would differ had other prompts been drawn.
    """
    if not responses.log_prob.size:
        return {}
    found = {"entropy_sampled": -responses.log_prob.mean()}
    if responses.has_entropy:
        found["entropy"] = responses.entropy.mean()
        error = _cluster_covariance(responses.entropy, responses.entropy, responses.prompt)
        if error is not None:
            found["entropy_error"] = np.sqrt(error)
    return {key: float(value) for key, value in found.items()}


@dataclass(frozen=True)
class Theorem:
    """What a theorem says of the updates made with a rollout batch.

    ``change``: of the entropy, in nats per token, that a step of size 1 would cause. ``shared_noise``: the covariance,
    over draws of the prompts, of ``change`` and the batch's own entropy. Both come from the same responses, so a batch
    that happens to hold high-entropy prompts shifts both, and the change measured from it to the next batch with them:
    a correlation that would be there if nothing were learned. :mod:`.entropy_change` takes it out.
    """

    change: float
    shared_noise: float


def theorems(responses: Responses) -> dict[str, Theorem]:
    """``theorem1`` and ``theorem2``.

    The theorems (paper Sec. 3.2; Theorem 1 for policy gradients, 2 for natural ones) say for each state s

        change of H(s) = -eta Cov_{a ~ pi(.|s)}(log pi(a|s), X(s, a)),     X = pi A (Theorem 1) or A (Theorem 2)

    and since the mean of log pi(a|s) over a is -H(s), (log pi + H(s)) X at the sampled token estimates that covariance
    without bias, state by state. Where the batch carries no entropies, the batch's mean takes the place of -H(s),
    as in the paper's Eq. 10: then it also holds what differs between states.
    """
    if not responses.log_prob.size:
        return {}
    if responses.has_entropy:
        entropy = responses.entropy
        one = responses.log_prob_weight + responses.entropy_weight
        two = responses.log_prob_advantage + responses.entropy_advantage
    else:
        entropy = -responses.log_prob
        one = responses.log_prob_weight + entropy.mean() * responses.weight
        two = responses.log_prob_advantage + entropy.mean() * responses.advantage
    return {
        name: Theorem(-float(x.mean()), -(_cluster_covariance(x, entropy, responses.prompt) or 0.0))
        for name, x in (("theorem1", one), ("theorem2", two))
    }


def prompts(responses: Responses) -> dict[str, float]:
    """Figure 8: the covariance within each prompt's responses, averaged over prompts, in nats times advantage.

    A prompt is the state and a whole response the action; log pi is the response's mean log-probability (Eq. 9) and the
    statistic Cov(log pi, pi A) (Eq. 8), pi being exp of that mean. Prompts whose responses all have the same advantage
    teach nothing and are left out, as the paper's filter does.

    Returns ``prompt_cov`` and ``prompts`` (how many), and where each response is right or wrong (the batch holds two
    different scores; the higher one is right) the same with ``_hard``, ``_medium`` and ``_easy``: prompts of which less
    than a third, a third to two thirds, or more of the responses are right. Of 8 responses these are 1-2, 3-5 and
    6-7; the paper shows 1, 4 and 7. A covariance without a prompt is left out.
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
    if np.unique(responses.score).size == 2:
        right = (responses.score == responses.score.max()).astype(np.float64)
        # Counts, and not 3 * mean(right): a third that is not exact must not fall on the wrong side.
        thirds = 3 * np.bincount(prompt, right)
        classes["_hard"] = taught & (thirds < sizes)
        classes["_medium"] = taught & (thirds >= sizes) & (thirds <= 2 * sizes)
        classes["_easy"] = taught & (thirds > 2 * sizes)
    found = {}
    for name, mine in classes.items():
        found[f"prompts{name}"] = float(mine.sum())
        if mine.any():
            found[f"prompt_cov{name}"] = float(covariance[mine].mean())
    return found


def _cluster_covariance(x: NDArray[np.float64], y: NDArray[np.float64], cluster: NDArray[np.int64]) -> float | None:
    """Covariance of the means of ``x`` and ``y`` over draws of their clusters, which are independent; None if there are
    not two of them."""
    if not cluster.any():
        return None
    _, index = np.unique(cluster, return_inverse=True)
    deviations = (np.bincount(index, values - values.mean()) for values in (x, y))
    products = np.multiply(*deviations)
    count = products.size
    if count < 2:
        return None
    return float(products.sum() * count / (count - 1) / x.size**2)
