"""Experiments: each claim about inference as one command that ends in a table and a plot."""
