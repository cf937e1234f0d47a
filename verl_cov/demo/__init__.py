"""The demo: vanilla GRPO, Clip-Cov and KL-Cov on a toy task, on a CPU, side by side. `python -m verl_cov.demo.run`.

The runner knows folders, processes and logs; what is trained stands in the Hydra configs `verl_cov/conf/verl_cov_demo`.
It imports neither verl nor torch: those live in the training process.
"""
