"""Sampling on a GPU in Triton, without waiting for it: what is drawn stays there until it is read.

The same answers as `sample/sampler.py` gives, found by a fixed number of launches on one stream,
whatever the logits are. A row is cut into parts of 4,096 ids, each a program of its own:

    scan       each part's largest logit and where it stands
    digits     the k-th largest logit of rows with top_k, 8 bits of it per launch (radix selection:
               a histogram of each part; integers, so that no order of adding matters)
    weigh      each part's sum of e^((logit - largest) / temperature), above the row's floor
    draw       one program per row: the part, then the id in it, by the running total; again among
               the likelier ones while those fill the nucleus, reading only parts that hold any

Nothing depends on the number of rows: parts are fixed, sums over a part are float64, and products
are not contracted with sums (`enable_fp_fusion=False`), so that every variant of a kernel rounds
alike. Memory traffic of a step: 3 reads of a row (1 if greedy), 8 with top_k.

These files have no `from __future__ import annotations`: Triton looks at the annotations. They
import nothing of the rest of pellucid; like `kernels/triton` they run in Triton's interpreter.
"""
