"""Controls of entropy as functions from the tokens of a mini-batch to weights of their advantages."""
