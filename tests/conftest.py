"""Test configuration: mistakes become errors (see the ten habits in the docs)."""

import os

# One thread a worker and no accelerator: bit-identity is promised for one thread only.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
