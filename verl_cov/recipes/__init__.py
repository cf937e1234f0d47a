"""The paper's runs as compositions of small Hydra files (`verl_cov/conf/recipe`, `verl_cov/conf/experiment`).

`catalogue` knows the recipes, `sources` where each number comes from, `compose` builds verl's configuration, `machine`
(with `memory`) checks this computer. To run them, `plan` decides what to train, `launch` is one start of verl's
trainer, `train` follows it with `log` and shows `progress`, `results` sums up. `cli` is `verl-cov recipes`.
"""
