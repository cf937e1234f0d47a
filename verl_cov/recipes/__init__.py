"""The paper's runs as compositions of small Hydra files (`verl_cov/conf/recipe`, `verl_cov/conf/experiment`).

`catalogue` knows which there are, `sources` where each number comes from, `compose` builds verl's configuration,
`machine` (with `memory`) says what is missing here, `launch` starts a run, `cli` is `verl-cov recipes`.
"""
