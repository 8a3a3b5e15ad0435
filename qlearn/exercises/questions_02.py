"""Predictions and quiz of lesson 02, choosing the range."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "02.a",
        "In lesson 00, two bits ruined the network: it misread about half of the digits. Now you may move the two ends "
        "of each layer's ruler, and nothing else. How many digits can it read at best?",
        (
            Choice(
                "Hardly more: two bits are two bits",
                "Two bits fix *how many* ticks there are, not where they lie. See what the next cell gets out of them.",
            ),
            Choice("Three quarters", "Guess higher: the next cell prints what other ends give."),
            Choice(
                "Nearly all",
                "The next cell prints it. The network needed its four ticks elsewhere, not more of them.",
                right=True,
            ),
        ),
    ),
    Question(
        "02.b",
        "You quantize the normal values to 4 bits and pull both ends in, from ±4.5 to ±1.5. What does the error do?",
        (
            Choice(
                "It falls: the ticks move closer together",
                "That is half of it. Whatever lies beyond the ends is cut off, and in the end that costs more.",
            ),
            Choice(
                "It rises: more and more is cut off",
                "In the end it does. At first almost nothing lies out there, and all other values get finer ticks.",
            ),
            Choice(
                "It falls, then it rises",
                "First the finer ticks gain more, then the values that are cut off lose more. The next picture shows where.",
                right=True,
            ),
            Choice(
                "It stays: the number of ticks is the same",
                "The number is, the distance between them is not. The error follows the distance.",
            ),
        ),
    ),
    Question(
        "02.c",
        "That was 4 bits. The same values now get 2 bits, four ticks. Where is the best range?",
        (
            Choice(
                "Wider: so few ticks must cover everything",
                "Spread over everything, the ticks would lie far from where most values are. Compare the next picture.",
            ),
            Choice(
                "In the same place: it depends on the values",
                "On the values *and* on the step. With fewer ticks rounding costs more, and clipping what it did.",
            ),
            Choice(
                "Narrower: most values lie near 0",
                "Long steps make rounding dear, so it pays to clip more. The next picture shows by how much.",
                right=True,
            ),
        ),
    ),
    Question(
        "02.d",
        "All 10,000 values are measured at 8 bits, the one at 1,000 too. Which range has the smaller error?",
        (
            Choice(
                "The percentile: 9,999 values get finer ticks",
                "They do, and each gains a little. What one value loses is squared. See the next cell.",
            ),
            Choice(
                "Min-max",
                "At 8 bits its steps are short anyway. One clipped value, squared, outweighs what the others gain.",
                right=True,
            ),
            Choice(
                "They are level: one of 10,000 does not count",
                "Squared, it does: even divided by 10,000 it is more than any rounding here. See the next cell.",
            ),
        ),
    ),
    Question(
        "02.q1",
        "You go from 8 bits to 4 with the same data. The best range becomes …",
        (
            Choice(
                "wider",
                "Wider ends make each step even longer, and with 4 bits steps are what hurts.",
            ),
            Choice(
                "narrower",
                "In a range of the same width a step is 17 times as long. A little clipping buys shorter ones.",
                right=True,
            ),
            Choice("no different", "Then nobody would need the bit width in a search. The U curve moves with it."),
        ),
    ),
    Question(
        "02.q2",
        "A layer has 300 weights and one outlier. What does the 99.9th percentile do with the outlier?",
        (
            Choice(
                "It leaves it out",
                "0.1 % of 300 is less than one value. There is nothing whole to leave out.",
            ),
            Choice(
                "It goes most of the way to it",
                "Place 0.999 · 299 = 298.7 lies between the two largest values, nearer to the outlier.",
                right=True,
            ),
            Choice("It includes it wholly", "Only the 100th percentile is the largest value itself."),
        ),
    ),
    Question(
        "02.q3",
        "A report says: “Percentile reduces the error on the inliers twentyfold.” What do you ask?",
        (
            Choice(
                "Which percentile it was",
                "Good to know, but no percentile shows what the report left out of its measurement.",
            ),
            Choice("How many inliers there were", "Many, surely. It is the few others that nobody has measured."),
            Choice(
                "What the error is with the outliers",
                "What is clipped enters the network as well, and so it enters the error.",
                right=True,
            ),
        ),
    ),
    Question(
        "02.q4",
        "The values are sorted, prefix sums are there. What is needed for the squared error of all values of one code?",
        (
            Choice(
                "Only where they begin and where they end",
                "Two places give their number, their sum and the sum of their squares, each as one difference.",
                right=True,
            ),
            Choice("Each value once more", "That is what sorting saves: the values of one code are neighbours."),
            Choice(
                "Their mean",
                "The mean gives the middle of the values, but not how far they lie from it: their squares count too.",
            ),
        ),
    ),
    Question(
        "02.q5",
        "When can the range with the *larger* mean squared error be the better one?",
        (
            Choice("Never: a smaller error is better", "The error counts each value alike. What comes after may not."),
            Choice(
                "When the values with large errors do not matter later",
                "Logits far below the winner are such values: the softmax turns them into zeros anyway.",
                right=True,
            ),
            Choice(
                "When there are few bits",
                "Few bits make the choice matter more. They do not turn a larger error into a better one.",
            ),
        ),
    ),
)
