"""Seeing what the server does: time lines, traces, recordings, logs, metrics, spans."""
