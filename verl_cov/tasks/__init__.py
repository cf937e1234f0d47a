"""Tasks to train on: data sets and verifiers, and a toy task with a model small enough for two CPU cores.

    reward.py          verl's reward function for mathematics and code, which the recipes name
    math/, code/       the verifiers behind it; import from the packages themselves, not from their modules
    process_pool.py    the child processes in which both do their work
    node_places.py     how many of them work at a time, over all reward workers of a machine
    data/              `verl-cov data`: from the paper's data sets to files that verl trains on
    countdown.py       the toy task: data, and verl's reward function for it
    pointer.py         another, where a common way to answer is capped and a rare one is not
    toy_files.py       how both write their files
    tiny_model/        a model of 0.2 million parameters that has learned one of them

Nothing is imported here. verl imports `reward`, `countdown` or `pointer` in each of its reward workers; they need
only the standard library there.
"""
