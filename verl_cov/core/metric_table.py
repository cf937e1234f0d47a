"""The table of all metrics that a run reports; docs/pages.py writes docs/metrics.md from it.

verl logs each key under ``actor/cov/``. No key contains "min", "max", "sum" or "total": verl would reduce it that way.
Knows nothing about verl.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "actor/cov/"
LEVELS = ("off", "basic", "full", "target")
# Shares of the tokens with the largest covariance whose mean is reported (paper Table 1).
LADDER = (0.0002, 0.002, 0.02, 0.2, 0.5)


@dataclass(frozen=True)
class Metric:
    """One metric of a run.

    Args:
        key: without :data:`PREFIX`.
        unit: "1" for shares and correlations.
        meaning: over one optimizer mini-batch (per update) or one rollout batch (per rollout), of all ranks.
        level: the lowest ``cov_metrics`` that reports it. Metrics at "off", the counts of the selection, are reported
            only in runs with a control; those at "target" at any ``cov_metrics``, in runs with a target.
        per: "update": computed at each optimizer step, and verl logs the mean over the steps of a rollout; "rollout":
            computed once per rollout.
        source: equation or table of the paper (arXiv 2505.22617).
    """

    key: str
    unit: str
    meaning: str
    level: str
    per: str
    source: str = ""


_COV = "nats x advantage"
_NATS = "nats/token"


def ladder_key(share: float) -> str:
    """Returns the key of the mean covariance of the ``share`` largest tokens."""
    return f"top_{share:g}"


def _updates() -> list[Metric]:
    kinds = {
        "exploitation": "likely tokens with better than average advantage: pulls entropy down",
        "confirmation": "unlikely tokens with worse than average advantage: pulls entropy down",
        "exploration": "unlikely tokens with better than average advantage: lifts entropy",
        "correction": "likely tokens with worse than average advantage: lifts entropy",
    }
    table_1 = {0.0002: "5.654", 0.002: "3.112", 0.02: "1.385", 0.2: "0.351", 0.5: "0.152"}
    return [
        Metric(
            "tokens", "tokens", "valid response tokens with finite values, N of the paper", "off", "update", "Eq. 10"
        ),
        Metric(
            "mean",
            _COV,
            "mean token covariance over the mini-batch; positive: likely tokens gain, which lowers entropy. Taken, as "
            "all that follows, with the log-probs of `cov_log_prob`; with verl's losses and with "
            "`cov_scope=micro_batch` with `old` ones",
            "basic",
            "update",
            "Eq. 10, Theorem 2; Table 1: 0.003",
        ),
        Metric("std", _COV, "standard deviation of the token covariance", "basic", "update", "Eq. 10"),
        *(
            Metric(
                f"{kind}_frac", "1", f"share of the tokens: {meaning}; the four add to 1", "basic", "update", "Eq. 10"
            )
            for kind, meaning in kinds.items()
        ),
        *(
            Metric(
                f"{kind}_cov_frac",
                "1",
                f"share in the sum of |covariance| of {meaning.split(':')[0]}; the four add to 1",
                "basic",
                "update",
                "Eq. 10",
            )
            for kind, meaning in kinds.items()
        ),
        *(
            Metric(
                ladder_key(share),
                _COV,
                f"mean covariance of the {100 * share:g} % largest",
                "full",
                "update",
                f"Table 1: {table_1[share]}",
            )
            for share in LADDER
        ),
        Metric("selected_tokens", "tokens", "tokens the control acted on", "off", "update", "Eq. 11, 13"),
        Metric("selected_frac", "1", "selected_tokens / tokens", "off", "update", "Eq. 11, 13"),
        Metric("selected_mean", _COV, "mean covariance of the selected tokens (0 if none)", "off", "update"),
        Metric(
            "selected_negative_frac",
            "1",
            "share of the selected tokens with a negative advantage (0 if none)",
            "off",
            "update",
        ),
        Metric("threshold", _COV, "KL-Cov: the smallest covariance selected (0 if none)", "off", "update", "Eq. 13"),
        Metric(
            "candidate_tokens",
            "tokens",
            "tokens the control could choose from (Clip-Cov: those in the band)",
            "off",
            "update",
            "Eq. 11",
        ),
        Metric(
            "tied_tokens",
            "tokens",
            "tokens with the smallest chosen covariance, if some were left out",
            "off",
            "update",
        ),
        Metric(
            "non_finite_tokens",
            "tokens",
            "tokens left out because log-prob or advantage is not finite",
            "off",
            "update",
        ),
        Metric(
            "changed_gradient_frac",
            "1",
            "how much the control changed of the policy loss's gradient by the log-probs: sum over the tokens of |with "
            "the control - without| / sum of |without|; 0 where verl throws that loss away",
            "basic",
            "update",
        ),
        Metric(
            "kl_dead_zone",
            _NATS,
            "KL-Cov with `cov_kl=abs`: a token whose log-prob has moved no further pays nothing",
            "off",
            "update",
        ),
        Metric(
            "overlap_current",
            "1",
            "with `cov_log_prob=old`: share of the selected tokens that the present policy's log-probs (`current`) "
            "would have selected too; counted in the update's own forward",
            "basic",
            "update",
        ),
        Metric(
            "overlap_old",
            "1",
            "with `cov_log_prob=current`: share of the selected tokens that `old` would have selected too",
            "off",
            "update",
        ),
        Metric("forward_seconds", "s", "with `cov_log_prob=current`: time of the additional forward", "off", "update"),
    ]


def _of_rollout(key: str, unit: str, meaning: str, source: str = "", level: str = "full") -> Metric:
    return Metric(key, unit, meaning, level, "rollout", source)


def _rollouts() -> list[Metric]:
    table = [
        _of_rollout(
            "entropy",
            _NATS,
            "entropy of the policy that sampled this rollout: mean over each response's tokens (of all outputs of a "
            "session, where an agent loop gives several), then over responses "
            "(verl's `actor/entropy` follows `loss_agg_mode` and by default weights long responses more). "
            "Absent if verl computes no entropy (`rollout_correction.bypass_mode`)",
            "Eq. 5",
        ),
        _of_rollout(
            "entropy_error", _NATS, "standard error of `entropy`: what it owes to the prompts that happened to be drawn"
        ),
        _of_rollout(
            "entropy_sampled",
            _NATS,
            "-log pi of the sampled tokens, averaged as `entropy` and an estimate of it",
            "Eq. 5",
        ),
        _of_rollout(
            "entropy_change",
            _NATS,
            "this rollout's `entropy` (without it: `entropy_sampled`) less the previous rollout's: what the updates on "
            "the *previous* rollout did",
            "Lemma 1",
        ),
    ]
    table.append(
        _of_rollout(
            "clip_scale",
            "1",
            "what gradient clipping left of this rollout's steps: mean of min(1, clip_grad / grad_norm)",
        )
    )
    table.append(
        _of_rollout(
            "entropy_falls",
            "1",
            "share of the last 50 rollouts (from 5 on) whose `entropy_change` was negative: a constant guess has the "
            "larger of this and 1 less this as its agreement",
        )
    )
    for number, x in ((1, "pi A"), (2, "A")):
        name = f"theorem{number}"
        table += [
            _of_rollout(
                name,
                f"{_NATS} per unit step",
                f"entropy change that Theorem {number} predicts of this rollout's updates, up to the step size: "
                f"-Cov(log pi, {x}) within each token's state, by (log pi + H) {x} averaged as `entropy`",
                f"Theorem {number}",
            ),
            _of_rollout(
                f"{name}_predicted",
                _NATS,
                f"`{name}` times `clip_scale` times the step size that fits the last 50 rollouts best: to be compared "
                "with the *next* rollout's `entropy_change`",
                f"Theorem {number}",
            ),
            _of_rollout(
                f"{name}_correlation",
                "1",
                f"correlation of `{name}` times `clip_scale` with the `entropy_change` one rollout later, over the "
                "last 50 rollouts (from 5 on), less what both owe to the same draw of prompts",
                "Figure 8",
            ),
            _of_rollout(
                f"{name}_agreement",
                "1",
                f"share of the last 50 rollouts (from 5 on) in which `{name}` had the sign of the `entropy_change`",
                "Figure 8",
            ),
        ]
    table.append(
        _of_rollout(
            "prompt_cov",
            _COV,
            "covariance of log pi and pi A within a prompt's responses (log pi: a response's mean log-prob, pi its "
            "exp), averaged over the prompts whose responses differ in advantage",
            "Eq. 8, 9; Figure 8",
        )
    )
    table.append(_of_rollout("prompts", "prompts", "how many prompts that is", "Figure 8"))
    for name, right in (("hard", "less than a third"), ("medium", "a third to two thirds"), ("easy", "more")):
        scope = (
            f"of the {name} prompts, of whose responses {right} are right (absent unless the scores take two values)"
        )
        table.append(_of_rollout(f"prompt_cov_{name}", _COV, f"`prompt_cov` {scope}", "Figure 8"))
        table.append(_of_rollout(f"prompts_{name}", "prompts", f"number {scope}", "Figure 8"))
    return table


def _targets() -> list[Metric]:
    return [
        _of_rollout("target", _NATS, "entropy that this rollout should have", level="target"),
        _of_rollout(
            "target_measured",
            _NATS,
            "entropy that it has: `entropy`, or `entropy_sampled` with `target.measure=sampled`",
            level="target",
        ),
        _of_rollout("target_error", _NATS, "`target_measured` less `target`", level="target"),
        _of_rollout(
            "target_held",
            "1",
            "share of the last 50 rollouts in which the entropy was within 10 % of the target",
            level="target",
        ),
        _of_rollout("knob", "the knob's", "what `target.knob` names, in this rollout's updates", level="target"),
        _of_rollout(
            "knob_clamped",
            "1",
            "1 where the controller wanted to go beyond `target.min` or `target.max`",
            level="target",
        ),
    ]


TABLE: tuple[Metric, ...] = (*_updates(), *_rollouts(), *_targets())
