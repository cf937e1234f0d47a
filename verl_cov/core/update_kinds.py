"""The four kinds of update that a token can get. Without torch: ``verl-cov watch`` runs where there is none."""

# By where a token lies from the mini-batch's mean log-probability and mean advantage. The first two have a positive
# covariance and lower entropy, the others raise it.
UPDATE_KINDS = (
    "exploitation",  # likely, and better than average: made more likely still
    "confirmation",  # unlikely, and worse than average: made less likely still
    "exploration",  # unlikely, and better than average
    "correction",  # likely, and worse than average
)
