"""Questions of lesson 01, quantization from scratch."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "01.a",
        "`uint8` ends at 255. What does a cast make of 256, 300 and −1?",
        (
            Choice("255, 255 and 0", "That is what one would wish for: the nearest code. A cast does something else."),
            Choice("0, 44 and 255", "It counts on from the other end, like the kilometres of an old car.", right=True),
            Choice("An error", "NumPy casts whole arrays without a word. That is why this bug is so hard to see."),
            Choice("1, 45 and −1", "After 255 comes 0, not 1; and `uint8` has no sign."),
        ),
    ),
    Question(
        "01.b",
        "The twenty values run from about −50 to 150. Which way has the smaller error on them, with 8 bits?",
        (
            Choice(
                "Asymmetric", "Its ruler covers 200 units with 255 steps, the symmetric one 300 with 254.", right=True
            ),
            Choice("Symmetric", "It has a sign, but it must reach as far down as it reaches up, to about −150."),
            Choice(
                "Both the same: 8 bits are 8 bits", "The codes are as many, and the steps between them are not as long."
            ),
        ),
    ),
    Question(
        "01.c",
        "You add one bit. What happens to the mean squared error?",
        (
            Choice("It halves", "The *step* halves. The error is squared."),
            Choice("It falls to about a quarter", "Half the step, and squared: a quarter, 6 dB.", right=True),
            Choice(
                "It falls to an eighth",
                "That would be three halvings. One bit halves the step once, and squaring makes two of it.",
            ),
            Choice(
                "It depends on the data: no rule",
                "How large it is depends on the data. By how much it falls hardly does.",
            ),
        ),
    ),
    Question(
        "01.d",
        "One of the network's 89,400 weights becomes 20; the others stay between −1 and 1. It belongs to a corner pixel, "
        "black in every image, so in float32 all answers stay as they are. How many digits does the network read in 4 bits?",
        (
            Choice(
                "As many as before: that weight is always multiplied by 0",
                "The weight itself does no harm. But the ruler has to reach it. Solve the exercise, and see.",
            ),
            Choice(
                "A little fewer: one weight in 89,400",
                "All the others are rounded with the ruler that has to reach it. Solve the exercise, and see.",
            ),
            Choice(
                "One in ten: it guesses",
                "The ruler must reach 20, and its steps become longer than the other weights. Solve the exercise, and see.",
                right=True,
            ),
        ),
    ),
    Question(
        "01.q1",
        "The values lie between 0 and 6, and you have 2 bits. What are scale and zero point?",
        (
            Choice("1.5 and 0", "That is 6 / 4. Between four ticks there are three steps."),
            Choice("2 and 0", "Three steps between four ticks: 0, 2, 4, 6.", right=True),
            Choice("2 and 2", "The zero point is the code of 0.0. Here that is the first tick."),
            Choice("3 and 1", "Then the ticks would be −3, 0, 3, 6: a quarter of the codes for nothing."),
        ),
    ),
    Question(
        "01.q2",
        "Why does `np.clip(x.astype(np.uint8), 0, 255)` do nothing useful?",
        (
            Choice("np.clip leaves integers as they are", "It clips them as well as floats."),
            Choice(
                "The cast has wrapped already, and what has wrapped lies inside 0 … 255",
                "Clamp first, and then cast.",
                right=True,
            ),
            Choice("It should clip to 0 … 256", "256 is no code: it would wrap to 0."),
        ),
    ),
    Question(
        "01.q3",
        "You go from 8 to 6 bits on the same range. What happens to the SQNR?",
        (
            Choice("It falls by about 2 dB", "A bit is worth about 6 dB, not one."),
            Choice("It falls by about 6 dB", "That is one bit. Here are two."),
            Choice(
                "It falls by about 12 dB",
                "The step is four times as long, the squared error sixteen times as large.",
                right=True,
            ),
            Choice("It grows by about 12 dB", "More decibels are better, and fewer bits are not."),
        ),
    ),
    Question(
        "01.q4",
        "For which data are symmetric codes a bad choice?",
        (
            Choice(
                "Weights centred on zero",
                "There both ways have nearly the same step, and symmetric is the simpler one.",
            ),
            Choice("What comes out of a ReLU", "Nothing is negative, so half of the codes are never used.", right=True),
            Choice("Data that contains zeros", "Code 0 stands exactly on 0.0: zeros are safe."),
        ),
    ),
    Question(
        "01.q5",
        "A tensor holds a million small values and one huge one. You clip the huge one. Which error grows?",
        (
            Choice("The rounding error of the million", "It shrinks: their ruler gets finer."),
            Choice("The clipping error of the one", "One value pays so that a million need not.", right=True),
            Choice("Both", "Rounding and clipping pull in opposite directions. That is the trade."),
            Choice("Neither", "The huge value comes back as the last tick, far from where it was."),
        ),
    ),
)
