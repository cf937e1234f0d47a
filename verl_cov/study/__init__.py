"""`verl-cov study`: claims of the paper, put to the test by many runs with seeds, under a protocol that came first.

protocol.py      reads recipes/study/NAME.yaml: which runs, which claims, which figures
results.py       the small file that each finished run leaves in docs/study/data/NAME
runner.py        trains what is missing, by the recipes' own runner
status.py        what is done, running and missing, and how long the rest takes
statistics.py    what a claim is about: numbers of a run, or of several
verdicts.py      a claim's number with its interval, and the verdict
figures.py, curves.py        the figures as the paper draws them
page.py          docs/study.md, from the files alone
cli.py           the commands
"""
