"""Structured output: from a schema, a regex or a grammar to the tokens that may come next.

`source.py` writes every kind as one grammar text and refuses what `schema.py` knows would not be
kept; `compiler.py` turns the text into matchers. Both processes use it, the front end to refuse a
grammar at the start, the engine to follow it; it imports nothing of ours.
"""
