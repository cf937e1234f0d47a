"""`verl-cov watch`: running or finished trainings, live in a terminal (``board``) and as a figure (``figure``).

Reads what verl's `file` logger writes (``sources``); knows nothing else about verl.
"""
