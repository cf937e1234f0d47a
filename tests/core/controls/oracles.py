"""The weights of each control by numpy, for one process that has the whole mini-batch; shares no code with the package.

Each takes columns (:func:`tests.core.controls.batches.mini_batch`) cut to the valid tokens, in float64. Where equal
scores have to be cut, a hash decides: :func:`may_differ` says which tokens that concerns.
"""

from __future__ import annotations

import numpy as np


def stare(c, share=0.1, promote=1.1, damp=1.0):
    weight = np.ones(len(c["advantage"]))
    for value, sign in ((promote, 1), (damp, -1)):
        of_sign = np.flatnonzero(np.sign(c["advantage"]) == sign)
        if len(of_sign):
            count = max(1, int(np.ceil(share * len(of_sign) - 1e-9)))
            weight[of_sign[np.argsort(c["log_prob"][of_sign], kind="stable")[:count]]] = value
    return weight


def omega(c):
    pi = np.exp(c["log_prob"])
    return np.abs(c["advantage"] / np.exp(c["old_log_prob"]) * pi * (1 - pi) * (c["log_prob"] + c["entropy"]))


def steer(c, least=0.8, most=1.2):
    size = omega(c)
    if size.max() == size.min():
        return np.full(len(size), (least + most) / 2)
    return most - (size - size.min()) / (size.max() - size.min()) * (most - least)


def steer_exponential(c, least=0.8, floor=0.02):
    size = omega(c)
    return np.clip(least ** (size / max(size.max(), floor)), least, 1)


def high_entropy(c, share=0.2):
    count = max(1, int(share * len(c["entropy"]) + 1e-9))
    weight = np.zeros(len(c["entropy"]))
    weight[np.argsort(-c["entropy"], kind="stable")[:count]] = 1
    return weight


def repo(c, zeta=1e-3):
    a, log_prob = c["advantage"], np.maximum(c["log_prob"], -20)
    changed = np.where(a > 0, np.maximum(0, a * (1 - zeta * log_prob)), np.minimum(0, a * (1 + zeta * log_prob)))
    return np.divide(changed, a, out=np.ones(len(a)), where=a != 0)


def positive_advantage(c, weight=0.1):
    return np.where(c["advantage"] > 0, weight, 1.0)


def clip_b(c, mu=2.5):
    score = np.exp(c["log_prob"]) * (c["entropy"] + c["log_prob"])
    kept = (c["advantage"] >= 0) | (score - score.mean() >= -mu * score.std())
    return kept / kept.mean()


def cov_weight(c, share=0.002):
    cov = (c["log_prob"] - c["log_prob"].mean()) * (c["advantage"] - c["advantage"].mean())
    count = max(1, int(share * len(cov) + 1e-9))
    cut = np.sort(cov)[::-1][min(count, len(cov) - 1)]
    return np.where((cov > cut) & (cut > 0), np.divide(cut, cov, out=np.ones(len(cov)), where=cov != 0), 1.0)
