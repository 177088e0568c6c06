"""Several processes that compute one model: tensor parallelism, see docs/tensor-parallel.md.

    engine process, rank 0                      worker processes, rank 1, 2, ...
    scheduler, rows, sampling
    executor.ParallelExecutor  -- messages -->  worker.follow
      the executor of its shard                   the executor of its shard
        collectives.ProcessRanks <-- tensors -->    collectives.ProcessRanks

What rank 0 asks of its own executor it first tells the others, who ask the same of theirs: so all
compute the same ops in the same order, and meet wherever a sum is due.
"""
