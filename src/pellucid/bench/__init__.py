"""Benchmarks: offline throughput of the engine, and load on any OpenAI-compatible server."""
