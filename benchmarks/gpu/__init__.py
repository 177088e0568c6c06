"""Everything there is to know of a GPU in ten minutes: `python -m benchmarks.gpu --out FOLDER`.

Also from a bare checkout (`PYTHONPATH=src`): it needs torch, triton, numpy, safetensors, tokenizers
and msgspec, and matplotlib for pictures. Each stage is a process of its own with a time limit; what
it found until it ended, however it did, is in FOLDER/report.json.
"""
