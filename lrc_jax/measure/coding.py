"""A quantised student as a bit string, written and read back.

What a decoder needs besides what was fixed before the sample (teacher, architecture, seeds): the index of the
configuration, the quantiser's step, how often each level occurs, and the levels themselves, arithmetic-coded with those
frequencies. The certificate pays for the length of this string: nothing is estimated.
"""

from __future__ import annotations

import dataclasses

import constriction
import numpy as np

WORD = 32  # bits of the range coder's words
STEP_BITS = 16  # the quantiser's step is a float16

Bits = np.ndarray  # of 0 and 1, uint8


@dataclasses.dataclass(frozen=True)
class QuantisedVector:
    """symbols * step, with symbols in -(levels-1)/2 .. (levels-1)/2 and step a float16 number."""

    symbols: np.ndarray
    step: float
    levels: int

    def __post_init__(self) -> None:
        if self.levels < 3 or self.levels % 2 == 0:
            raise ValueError(f"levels: {self.levels} must be odd and at least 3")
        if float(np.float16(self.step)) != self.step or not self.step > 0:
            raise ValueError(f"step: {self.step} is no positive float16 number")
        if np.abs(self.symbols).max(initial=0) > (self.levels - 1) // 2:
            raise ValueError(f"symbols: outside the {self.levels} levels")

    def values(self) -> np.ndarray:
        """float32, exactly what the decoder reconstructs."""
        return self.symbols.astype(np.float32) * np.float32(self.step)


def _to_bits(value: int, width: int) -> Bits:
    return np.array([(value >> (width - 1 - i)) & 1 for i in range(width)], np.uint8)


def _to_int(bits: Bits) -> int:
    return int("".join(map(str, bits.tolist())) or "0", 2)


def _model(counts: np.ndarray) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)


def _read_payload(bits: Bits, counts: np.ndarray) -> np.ndarray:
    """Symbols 0..k-1 from a payload to which any number of zeros may be appended."""
    padded = np.zeros(-(-(len(bits) + 2 * WORD) // WORD) * WORD, np.uint8)
    padded[: len(bits)] = bits
    words = np.packbits(padded).view(">u4").astype(np.uint32)
    return constriction.stream.queue.RangeDecoder(words).decode(_model(counts), int(counts.sum()))


def _decodes_to(bits: Bits, counts: np.ndarray, symbols: np.ndarray) -> bool:
    """Whether a candidate payload carries the symbols; one that the coder refuses as invalid does not."""
    try:
        return np.array_equal(_read_payload(bits, counts), symbols)
    except AssertionError:  # constriction's word for data outside the model's range
        return False


def _write_payload(symbols: np.ndarray, counts: np.ndarray) -> Bits:
    """Range-coded symbols, cut to the shortest prefix that still decodes (the coder fills up whole words)."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), _model(counts))
    bits = np.unpackbits(np.frombuffer(encoder.get_compressed().astype(">u4").tobytes(), np.uint8))
    whole = _to_int(bits)
    shortest = bits
    for cut in range(1, 2 * WORD):
        if cut >= len(bits):
            break
        # Cutting rounds the number down; the next number up may be the one that still lies in the last interval.
        candidates = (
            _to_bits(number, len(bits) - cut)
            for number in ((whole >> cut), (whole >> cut) + 1)
            if number < 1 << (len(bits) - cut)
        )
        good = next((c for c in candidates if _decodes_to(c, counts, symbols)), None)
        if good is None:
            break
        shortest = good
    return shortest


def encode(vector: QuantisedVector, configuration: int, configurations: int) -> Bits:
    """The message: configuration index, step, counts of all levels but the last, payload (index alone where the vector
    is empty).

    Args:
      vector: what to send; its length and number of levels are known from the configuration.
      configuration: index below `configurations`, the number of those fixed before the sample.
    """
    if not 0 <= configuration < configurations:
        raise ValueError(f"configuration {configuration} is outside 0..{configurations - 1}")
    symbols = vector.symbols + (vector.levels - 1) // 2
    counts = np.bincount(symbols, minlength=vector.levels)
    width = len(symbols).bit_length()
    header = [_to_bits(configuration, (configurations - 1).bit_length())]
    if not len(symbols):
        return header[0]
    header.append(_to_bits(int(np.float16(vector.step).view(np.uint16)), STEP_BITS))
    header += [_to_bits(int(c), width) for c in counts[:-1]]
    return np.concatenate([*header, _write_payload(symbols, counts)])


def decode(bits: Bits, lengths: list[tuple[int, int]]) -> tuple[int, QuantisedVector]:
    """Configuration index and vector of a message.

    Args:
      lengths: (number of symbols, levels) of every configuration, by index.
    """
    position = 0

    def take(width: int) -> int:
        nonlocal position
        position += width
        return _to_int(bits[position - width : position])

    configuration = take((len(lengths) - 1).bit_length())
    count, levels = lengths[configuration]
    if not count:
        return configuration, QuantisedVector(np.zeros(0, np.int64), 1.0, levels)
    step = float(np.uint16(take(STEP_BITS)).view(np.float16))
    counts = np.array([take(count.bit_length()) for _ in range(levels - 1)])
    counts = np.append(counts, count - counts.sum())
    symbols = _read_payload(bits[position:], counts) - (levels - 1) // 2
    return configuration, QuantisedVector(symbols, step, levels)


def elias_gamma_bits(length: int) -> int:
    """Bits of a self-delimiting string: its own `length` and the Elias gamma code of that, 2 floor(log2 length) + 1.
    The lengths satisfy Kraft's inequality exactly, so that 2^-K is a prior."""
    if length < 1:
        raise ValueError("an empty message has no Elias gamma code")
    return length + 2 * (length.bit_length() - 1) + 1


def self_delimiting(bits: Bits) -> Bits:
    """The message behind the Elias gamma code of its length."""
    width = len(bits).bit_length()
    return np.concatenate([np.zeros(width - 1, np.uint8), _to_bits(len(bits), width), bits])


def read_self_delimiting(stream: Bits) -> tuple[Bits, Bits]:
    """The message at the start of a stream, and the rest."""
    zeros = int(np.argmax(stream))
    length = _to_int(stream[zeros : 2 * zeros + 1])
    start = 2 * zeros + 1
    return stream[start : start + length], stream[start + length :]


def entropy_bits(symbols: np.ndarray) -> float:
    """n H(empirical frequencies), the ideal payload."""
    counts = np.unique(symbols, return_counts=True)[1]
    return abs(float(np.sum(counts * np.log2(counts / counts.sum()))))
