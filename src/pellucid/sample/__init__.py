"""Logits in, tokens out. Imports nothing of the rest of pellucid."""
