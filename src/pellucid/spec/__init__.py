"""Guessing what a model will say next. Leaves: tokens in, tokens out."""
