"""`verl-cov watch`: shows running or finished trainings in a terminal (``board``) and as a picture (``figure``).

``sources`` reads their logs, ``live`` is the loop.
"""
