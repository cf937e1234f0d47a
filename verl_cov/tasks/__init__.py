"""Tasks the recipes train on: a data set and a verifier each, and a model small enough to train on two CPU cores.

Nothing is imported here: `countdown` and `reward`, which verl imports in every reward worker, need only the standard
library (`countdown` more when it writes a file); `tiny_model` needs torch and transformers. `reward` judges by
`math_verifier` and `code_verifier`, whose work is done in child processes: `math_worker`, and `sandbox_server` behind
`sandbox`, each in a `process_pool`.
"""
