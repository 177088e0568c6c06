"""`python -m benchmarks soak`: a real server in mixed traffic, with killed engines."""

from benchmarks.soak.run import main

__all__ = ["main"]
