r"""From a row as a data set's makers publish it to a question and its answer or tests.

A format names the fields it needs, and a reader that returns an `Item`, or raises `Unusable` where the row has no
usable answer or tests, or `Elsewhere` where the row is fine but belongs to another set. The formats are those of the
files on the Hugging Face Hub and of the copies in wide use; `sets.py` says which set has which.
"""
