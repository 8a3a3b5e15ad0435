"""Questions of lesson 03, granularity."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "03.a",
        "Without `keepdims`, column 7 is divided by the scale of row 7, and no error is raised. What happens to the SQNR of this square layer?",
        (
            Choice("It stays the same", "The scales are the same numbers, in other places. The places matter."),
            Choice(
                "It falls, and most weights are still near",
                "Weights that meet too short a scale are clipped, the others are rounded too coarsely.",
                right=True,
            ),
            Choice(
                "It falls below 0 dB: nothing is left",
                "The scales of the rows differ by a factor of six at most, so much survives. That is what makes it hard to notice.",
            ),
        ),
    ),
    Question(
        "03.b",
        "Rows that differ by up to a thousand times, 8 bits, one scale for all. Are these weights still usable?",
        (
            Choice(
                "No: the small rows are lost, so the network is ruined",
                "Small rows are lost. The SQNR will not show it, and the network can do without some of them. Look at all three.",
            ),
            Choice(
                "Yes, for the most part",
                "Some rows are lost entirely, and the network misses them little at 8 bits. With fewer bits it will.",
                right=True,
            ),
            Choice("Yes, 8 bits are always enough", "Look at the error of each row, and then at fewer bits."),
        ),
    ),
    Question(
        "03.c",
        "Here a row of activations is an image. Will a scale for each image help?",
        (
            Choice(
                "No: all images go through the same layer",
                "They do, and one with strong activations sets the ruler for all others.",
            ),
            Choice(
                "Yes, and it costs nothing",
                "It helps. But the scales can only be found when the data arrives: that is its price.",
            ),
            Choice(
                "Yes, at a price",
                "One strong image no longer sets the ruler for all. The scales must be found while the network runs.",
                right=True,
            ),
        ),
    ),
    Question(
        "03.d",
        "At 2 bits the codes are −1, 0 and 1. Which is better: a hundred min-max scales, one for each row, or *one* MSE scale for the whole matrix?",
        (
            Choice(
                "A hundred scales",
                "They win from 4 bits up. At 2 bits each of them still puts its outer ticks on the largest weight of its row.",
            ),
            Choice(
                "One MSE scale",
                "With three ticks in all, where they lie matters more than how many rulers there are.",
                right=True,
            ),
            Choice("Both the same", "Look at the left end of the curves."),
        ),
    ),
    Question(
        "03.q1",
        "x has shape (8, 6, 4, 4) and scale has shape (8, 1, 1, 1). How many values share one scale?",
        (
            Choice("8", "That is how many scales there are."),
            Choice("16", "4 · 4 of one channel of inputs. The scale also covers the axis of 6."),
            Choice("96", "6 · 4 · 4. It is a convolution's weights, one scale for each output channel.", right=True),
            Choice("768", "That is all of x."),
        ),
    ),
    Question(
        "03.q2",
        "`np.abs(w).max(axis=0)` of weights (O, I): which scales are these?",
        (
            Choice("One for each output, a row", "`axis=0` is the axis that goes, and the outputs lie along it."),
            Choice("One for each input, a column", "Axis 0 is gone, the columns are left.", right=True),
            Choice("One for the whole matrix", "That would be `max()` without an axis."),
        ),
    ),
    Question(
        "03.q3",
        "Codes of 3 bits, groups of 64, float16 scales, no zero points. How many bits per value?",
        (
            Choice("3", "Somebody must store the scales."),
            Choice("3.25", "3 + 16 / 64.", right=True),
            Choice("3.5", "That would be scales of 32 bits."),
            Choice("19", "The scale is stored once for a group, not once for a value."),
        ),
    ),
    Question(
        "03.q4",
        "All rows of a layer have the same range. What does one scale for each row gain?",
        (
            Choice("About 6 dB", "That is what one bit more gains."),
            Choice("Nothing", "Every row chooses the same scale.", right=True),
            Choice("As much as the number of rows", "Each row would choose the scale that it has already."),
        ),
    ),
    Question(
        "03.q5",
        "With 2 bits and min-max scales for each row, a network reads a quarter of the digits. What do you try first?",
        (
            Choice(
                "Smaller groups", "They cost bits, and each group still puts its outer ticks on its largest weight."
            ),
            Choice("Another range", "One that clips costs no extra bits.", right=True),
            Choice(
                "A scale for each column",
                "It cannot move out of the sum, and it has the same trouble with its largest weight.",
            ),
        ),
    ),
)
