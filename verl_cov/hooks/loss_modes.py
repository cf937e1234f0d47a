"""The names of our policy losses, and where a trainer's configuration has the fields of a policy loss."""

CLIP_COV = "verl_cov.clip_cov"
KL_COV = "verl_cov.kl_cov"
LOSS_MODES = (CLIP_COV, KL_COV)
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
