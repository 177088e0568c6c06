"""llama.cpp as the runner: its model and kernels under this engine's scheduler and sampler."""
