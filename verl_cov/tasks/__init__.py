"""Tasks the recipes train on: a data set and a verifier each, and a model small enough to train on two CPU cores.

Nothing is imported here: `countdown` needs only the standard library until it writes a file, and verl imports it in
every reward worker; `tiny_model` needs torch and transformers.
"""
