"""The names of verl-cov's policy losses, and the node of a trainer's configuration with a policy loss's fields."""

CLIP_COV = "verl_cov.clip_cov"
KL_COV = "verl_cov.kl_cov"
LOSS_MODES = (CLIP_COV, KL_COV)
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
