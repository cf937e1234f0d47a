"""Tasks to train on: data sets and verifiers, and tasks with models small enough for two CPU cores.

    reward.py          verl's reward function for mathematics and code, which the recipes name
    math/, code/       the verifiers behind it; import from the packages themselves, not from their modules
    process_pool.py    the child processes in which both do their work
    node_places.py     how many of them work at a time, over all reward workers of a machine
    data/              `verl-cov data`: from the paper's data sets to files that verl trains on
    countdown.py       the toy task: data, and verl's reward function for it
    pointer.py         another one, pointer chasing
    tiny_model/        models of 0.04 to 3 million parameters that have learned one of them
    arithmetic.py      mental arithmetic in words, likewise
    smollm2.py         a language model of 135 million parameters, which knows some of it
    toy_files.py       the two files of such a task's data
    model_folder.py    the folder of a model that is made here

Nothing is imported here. verl imports `reward` or the module of a task in each of its reward workers; they need only
the standard library there.
"""
