"""The documentation, and `pages`, which writes the parts of it that are made from the code."""
