"""The four kinds of update that a token can get. Imports no torch: ``verl-cov watch`` runs where there is none."""

# By whether a token's log-prob and advantage are above or below the means of the mini-batch. The first two have a
# positive covariance and lower entropy, the last two raise it.
UPDATE_KINDS = (
    "exploitation",  # likely, and better than average: made more likely still
    "confirmation",  # unlikely, and worse than average: made less likely still
    "exploration",  # unlikely, and better than average
    "correction",  # likely, and worse than average
)
