"""The data sets of the paper's runs, as files that verl trains and validates on: `verl-cov data` (docs/data.md).

cli.py              the commands
sets.py             the table of sets: where each is, its formats, its size
sources.py          rows from files, folders or the Hugging Face Hub
formats/            from a row as its makers publish it to a question and its answer or tests
prepare.py          from a set's source to its file; tally.py: what happened to the rows on the way
rows.py             the schema of the file, and its checks
stamped_file.py     a file and the stamp beside it: written whole, by one process at a time
contamination.py    training questions that are also in an evaluation set
samples/            a few rows of each set, to try things out with
"""
