"""PRIME on verl's synchronous V1 trainer: ``trainer.v1.trainer_mode=verl_cov.prime``, set by ``+verl_cov=prime``."""
