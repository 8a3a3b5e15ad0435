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


def _times_eight(parameters, bits):
    return parameters * bits * 8


def _by_values(parameters, bits):
    return -(-parameters * 2**bits // 8)


def _whole_bytes_of_bits(parameters, bits):
    return parameters * (bits // 8)


def _rounded_too_early(parameters, bits):
    return -(-parameters // 8) * bits


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
        Mistake(_times_eight, "A byte has eight bits: divide by 8."),
        Mistake(_by_values, "2**bits is how many values a number of that width can have. It takes `bits` bits."),
        Mistake(_whole_bytes_of_bits, "4 bits are half a byte, not none: count all bits before you divide by 8."),
        Mistake(_rounded_too_early, "You round up before all bits are counted. Multiply first, then divide by 8."),
        Mistake(_fraction, "Half a byte cannot be stored: round up to a whole number."),
    ),
    hints=(
        "How many bits are there in all, and how many bytes do those fill?",
        "A byte holds 8 bits. 20 bits fill 2 bytes, and 4 bits of a third: that one counts as well.",
        "`math.ceil` rounds up. In whole numbers, `-(-a // b)` does, because `//` rounds down.",
    ),
)

EXERCISES = (SIZE_IN_BYTES,)
