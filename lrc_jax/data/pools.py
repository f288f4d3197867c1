"""Pools of sequences: disjoint ones for the teacher, the reference model, the students and the test."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import numpy as np

from lrc_jax.data.windows import Windows


@flax.struct.dataclass
class Pool:
    """Training or test sequences (NumPy arrays on the host, or `Windows` of a text; batches of them are traced).

    Attributes:
      tokens_NT: inputs, int32 [N, T].
      labels_NT: what each position should predict, int32 [N, T]; losses.IGNORE where there is nothing to predict.
      final_NTD: the teacher's final features, precomputed, or None.
      sites: with these, the teacher's other activations that a training reads, [N, T, X] by the names of
        `activation_cache.read_site`, or None.
    """

    tokens_NT: Any
    labels_NT: Any
    final_NTD: Any = None
    sites: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        return self.tokens_NT.shape[0]

    def first(self, count: int) -> Pool:
        """The first sequences, without what was precomputed of the teacher."""
        return Pool(self.tokens_NT[:count], self.labels_NT[:count])


def pool_from_sequences(sequences_NT1: np.ndarray | Windows) -> Pool:
    """Sequences of T+1 tokens -> T inputs with their next tokens as labels."""
    sequences = sequences_NT1 if isinstance(sequences_NT1, Windows) else np.asarray(sequences_NT1, np.int32)
    return Pool(sequences[:, :-1], sequences[:, 1:])


class DataSource(Protocol):
    """Sequences of a fixed length from one population, in disjoint pools.

    `sequences(purpose, n, replicate)` returns the first n sequences [n, T+1] of an endless or finite stream; asking
    for more extends it (nested subsets). Purposes: "teacher", "reference", "student", "test", "probe". Streams of
    different purposes never share a sequence; those of different replicates (seeds) are independent draws from the
    same pool.
    """

    vocab_size: int
    sequence_length: int

    @property
    def digest(self) -> str:
        """Identifies the content: equal digests give equal sequences."""

    def available(self, purpose: str) -> int | None:
        """Sequences in a pool; None where the stream is endless."""

    def sequences(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        """The first n sequences of a stream, int32 [n, T+1]. Raises InputError beyond the pool's end."""

    def documents(self, purpose: str, n: int, replicate: int = 0) -> np.ndarray:
        """Document number of each of these sequences: the unit to resample by."""

    def bayes_loss(self) -> tuple[float, float] | None:
        """Loss of the best predictor on such a window and its standard error (nats per token), where known."""
