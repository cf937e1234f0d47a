"""The names of verl-cov's policy losses, two controls and a base loss, and the node of a policy loss's fields."""

CLIP_COV = "verl_cov.clip_cov"
KL_COV = "verl_cov.kl_cov"
LOSS_MODES = (CLIP_COV, KL_COV)
CE_GPPO = "verl_cov.ce_gppo"
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
