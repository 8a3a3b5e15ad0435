"""Questions of lesson 08, below eight bits."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "08.a",
        "Each layer gets four numbers of its own in the same way, and every weight becomes the nearest of them. "
        "Which network reads most digits?",
        (
            Choice(
                "A, as far as the weights reach",
                "Two of A's numbers lie where hardly any weight is. The next cell shows what that does.",
            ),
            Choice(
                "B, each used by a quarter of the weights",
                "Tempting: no number idles. But B has none for the larger weights, and moves those furthest.",
            ),
            Choice(
                "C, somewhere in between",
                "It moves the larger weights less than B, and has no number idle as A has.",
                right=True,
            ),
            Choice("About the same, it is two bits each time", "The bits are the same. What they say is not: run on."),
        ),
    ),
    Question(
        "08.b",
        "The levels have settled. Are they the best sixteen for these weights?",
        (
            Choice(
                "Yes: each step lowers the error, until no step can",
                "A step moves each level only to the mean of the weights that it has now. "
                "For less error, several levels would have to move at once.",
            ),
            Choice(
                "Yes, since the histogram has a single peak",
                "That peak is one of weights. The error as a function of sixteen levels is another country, "
                "with many valleys.",
            ),
            Choice(
                "Not for certain: another start may lead to better ones",
                "Lloyd's steps end in the first valley. The next cell starts elsewhere.",
                right=True,
            ),
        ),
    ),
    Question(
        "08.c",
        "From left to right, more and more values lie far out. For which data does int8 have the smaller error?",
        (
            Choice(
                "For none: FP8 has its levels where the values are",
                "Close to 0 it does. But most of the error arises further out, where FP8's steps are long.",
            ),
            Choice("For the even values only", "For the even ones most of all, and the next cell shows which others."),
            Choice(
                "For all but Student t",
                "Only there do values lie so far out that one step for all is too long for the rest.",
                right=True,
            ),
            Choice(
                "For all four: both have 8 bits",
                "Where one value is far out, it sets int8's step for all others. Look at the last group.",
            ),
        ),
    ),
    Question(
        "08.d",
        "Normal values in blocks of 32. Which rule has the smallest error?",
        (
            Choice("floor: the shortest steps", "Short steps, at the price of the most clipping. It comes close."),
            Choice("ceil: nothing is cut off", "Nothing is, but look at the last column: what is never used?"),
            Choice("rceil: no more room than needed", "Nothing is cut off, and 6 is used. It comes close."),
            Choice(
                "even: a little may be cut off",
                "A little clipping buys shorter steps for the whole block, as in lesson 02.",
                right=True,
            ),
        ),
    ),
    Question(
        "08.q1",
        "Each row of a 4096 × 4096 matrix has a codebook of 16 levels in float32. How many bits is a weight?",
        (
            Choice("4", "That is the code. The lists are stored too: 16 · 32 bits for every 4096 weights."),
            Choice("4.008", "That counts 32 bits a row. A codebook has 16 numbers of 32 bits."),
            Choice("4.125", "4 + 16 · 32 / 4096.", right=True),
            Choice("8", "16 · 32 bits are shared by the 4096 weights of the row."),
        ),
    ),
    Question(
        "08.q2",
        "Why can the codes of a k-means codebook not be multiplied as integers?",
        (
            Choice("They are unsigned", "So are uint8 codes, and those can be multiplied (lesson 04)."),
            Choice(
                "A code is a place in a list, and no multiple of the value",
                "The value has to be looked up first.",
                right=True,
            ),
            Choice("Their products need more than 32 bits", "Codes of 4 bits have products of 8."),
        ),
    ),
    Question(
        "08.q3",
        "Which numbers of FP8 E4M3 follow 1 and 256?",
        (
            Choice("1.125 and 288", "Between two powers of two there are 8 steps: 1/8 and 32 long.", right=True),
            Choice("1.125 and 256.125", "Steps double with each power of two: eight doublings from 1 to 256."),
            Choice("1.0625 and 272", "That has 16 steps between two powers of two: 4 significand bits."),
            Choice("1.25 and 320", "That is E5M2, with 2 significand bits."),
        ),
    ),
    Question(
        "08.q4",
        "A block's largest magnitude is 5, the format is FP4. Which rule gives another scale than the other three?",
        (
            Choice("floor", "floor gives 1, and 5 is below 6: so do two others."),
            Choice("ceil", "5 is no power of two, so ceil doubles the scale to 2. The others give 1.", right=True),
            Choice("rceil", "rceil doubles the scale only if something would be cut off, and 5 is below 6."),
            Choice("even", "5 is not near enough to 8: even gives 1, like floor."),
        ),
    ),
    Question(
        "08.q5",
        "A tensor becomes ten times as large, and gets a scale (float32) of its own again. What happens to the SQNR?",
        (
            Choice(
                "int8's falls, FP8's does not",
                "int8 would suffer if the scale did not fit. A scale of its own grows with the values.",
            ),
            Choice("Nothing, in int8 and in FP8", "The scale grows by ten too: the codes stay.", right=True),
            Choice("FP8 changes: its levels are not evenly spaced", "The scaled values are the same as before."),
        ),
    ),
)
