"""The names of verl-cov's policy losses and of their numbers, and the node of a configuration that they stand in."""

CLIP_COV = "verl_cov.clip_cov"
KL_COV = "verl_cov.kl_cov"
LOSS_MODES = (CLIP_COV, KL_COV)
CE_GPPO = "verl_cov.ce_gppo"  # a base loss
ACTOR = "actor_rollout_ref.actor"
POLICY_LOSS = f"{ACTOR}.policy_loss"
# What can follow a schedule.
NUMBERS_OF = {
    CLIP_COV: ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub"),
    KL_COV: ("kl_cov_ratio", "ppo_kl_coef"),
}
# What a target can move: the more, the higher the entropy.
KNOBS_OF = {CLIP_COV: ("clip_cov_ratio",), KL_COV: ("ppo_kl_coef", "kl_cov_ratio")}
# The same of the controls by weight, with the largest value that each can have.
WEIGHT_KNOBS = {"repo.zeta": 1.0, "cov_weight.share": 1.0}
ENTROPY_BONUS = "entropy_coeff"  # verl's, with any loss
# These only take gradients away: they can hold an entropy, and not raise it.
KNOBS_THAT_HOLD = ("clip_cov_ratio",)
