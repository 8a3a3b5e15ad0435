"""Exercise of lesson 00, start here."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

from hypothesis import strategies as st

from qlearn.exercises.checking import Exercise, Mistake


def size_in_bytes(parameters, bits):
    return -(-parameters * bits // 8)


def _rounded_down(parameters, bits):
    return parameters * bits // 8


def _in_bits(parameters, bits):
    return parameters * bits


def _byte_for_each(parameters, bits):
    return parameters * -(-bits // 8)


def _always_one_more(parameters, bits):
    return parameters * bits // 8 + 1


def _fraction(parameters, bits):
    return parameters * bits / 8


SIZE_IN_BYTES = Exercise(
    id="00.1",
    solution=size_in_bytes,
    examples=(
        {"parameters": 1000, "bits": 4},
        {"parameters": 3, "bits": 3},
    ),
    cases=st.fixed_dictionaries({"parameters": st.integers(1, 10**6), "bits": st.integers(1, 32)}),
    mistakes=(
        Mistake(_rounded_down, "Nine bits do not fit into one byte: round up, not down."),
        Mistake(_in_bits, "That is the number of bits. A byte has eight of them."),
        Mistake(_byte_for_each, "That gives every number whole bytes of its own. Packed, two 4-bit numbers share one."),
        Mistake(_always_one_more, "4000 bits fill 500 bytes exactly: add one byte only where bits are left over."),
        Mistake(_fraction, "Half a byte cannot be stored: round up to a whole number."),
    ),
    hints=(
        "How many bits are there in all, and how many bytes do those fill?",
        "A byte holds 8 bits. 20 bits fill 2 bytes, and 4 bits of a third: that one counts as well.",
        "`math.ceil` rounds up. In whole numbers, `-(-a // b)` does, because `//` rounds down.",
    ),
)

EXERCISES = (SIZE_IN_BYTES,)
