"""Questions of lesson 04, integer arithmetic."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "04.a",
        "An input has code 9 and zero point 3, a weight has code 12 and zero point 4. You want (9 − 3) · (12 − 4), and the chip has 9 · 12 = 108. It takes away 3 · 12 and 4 · 9. Is that right?",
        (
            Choice("Yes", "That leaves 36, and 6 · 8 is 48. The picture shows where the 12 have gone."),
            Choice(
                "No, it is too much",
                "Both strips hold the corner 3 · 4, and it has gone twice. The picture puts it back.",
                right=True,
            ),
            Choice(
                "No, it is too little",
                "It would be, if the corner 3 · 4 had to go as well. Look in the picture how often it has gone.",
            ),
        ),
    ),
    Question(
        "04.b",
        "You make the weights symmetric: their zero point is 0. What must still be taken away from the raw products?",
        (
            Choice(
                "Nothing: the raw product is right",
                "It would be, if the inputs had zero point 0 as well. One strip of the rectangle is left.",
            ),
            Choice(
                "The same numbers for every image",
                "What is left is z_x times the sums over the weights, and those are known before any image comes.",
                right=True,
            ),
            Choice(
                "Other numbers for every image",
                "Those are z_w times the sums over an image's codes. With z_w = 0 just they are gone.",
            ),
        ),
    ),
    Question(
        "04.c",
        "One product of 8-bit codes needs 16 bits. How many does a sum of 784 of them need at worst?",
        (
            Choice(
                "16: adding does not multiply",
                "Two products can already be too much for 16 bits. The next cell counts.",
            ),
            Choice(
                "26",
                "Each doubling of K costs one bit, and 784 lies between 2 to the power of 9 and 10.",
                right=True,
            ),
            Choice(
                "Many more than 32",
                "The sum grows with K, but its bits only with the logarithm: one more for each doubling.",
            ),
        ),
    ),
    Question(
        "04.d",
        "The layer rounded twice: after the multiplication and after the shift. Of 100,000 codes, how many are not the exact ones?",
        (
            Choice(
                "None: the first rounding is far too fine to matter",
                "It is fine. But now and then it moves a value just where the second one decides.",
            ),
            Choice(
                "A few dozen at most, each by one",
                "Only where the first rounding moves a value onto the middle between two codes.",
                right=True,
            ),
            Choice(
                "About half, each by one",
                "That would be so, among the codes above 0, if the shift cut off instead of rounding.",
            ),
            Choice(
                "A few, and some by far",
                "Both roundings together move a value by little more than half a code. Further than one code none gets.",
            ),
        ),
    ),
    Question(
        "04.q1",
        "The weights have zero point 0, the inputs zero point 12. Which correction is left, and when is it computed?",
        (
            Choice("None", "Only with both zero points at 0."),
            Choice(
                "12 times the sum over each column of the weights, in advance",
                "It depends on no input, and can be folded into the bias.",
                right=True,
            ),
            Choice("12 times the sum over each row of the inputs, for every image", "That term has z_w, and z_w is 0."),
            Choice("K · 12, in advance", "The corner has both zero points as factors, and one of them is 0."),
        ),
    ),
    Question(
        "04.q2",
        "An input has scale 0.02, the weights have scale 0.005. Which int32 code does a bias of 0.3 get?",
        (
            Choice("15", "That is at the input's scale alone."),
            Choice("60", "That is at the weights' scale alone: the accumulator counts in much smaller steps."),
            Choice("3,000", "One step of the accumulator is worth 0.02 · 0.005 = 0.0001.", right=True),
        ),
    ),
    Question(
        "04.q3",
        "A layer's factor is 0.2. What is its shift?",
        (
            Choice("1", "0.4 is below 0.5, and m would leave a bit unused."),
            Choice(
                "2", "Doubled twice it is 0.8, which lies between 0.5 and 1. Then m = 0.8 · 2³¹, rounded.", right=True
            ),
            Choice("3", "1.6 is too much: m would need 32 bits beside its sign."),
            Choice("33", "The 31 places of m are taken back by the high multiply, and do not count."),
        ),
    ),
    Question(
        "04.q4",
        "Your integer network and your colleague's differ in 3 of 100,000 codes, each by one. What do you check first?",
        (
            Choice("Nothing: so few do not matter", "They may be harmless, or the tip of a bug. One look tells which."),
            Choice("Whether a sum has wrapped", "A sum that wraps changes a code by far, hardly ever by one."),
            Choice(
                "Whether the exact values of these three lie next to a tie",
                "If so, one of you rounds twice, or rescales in floats. If not, there is a bug.",
                right=True,
            ),
            Choice("The scale of the bias", "A wrong one would move nearly all codes."),
        ),
    ),
    Question(
        "04.q5",
        "Weights of 7 bits and inputs of 8 bits: why does no pair of products saturate in 16 bits?",
        (
            Choice("7 + 8 = 15, so a product has 15 bits", "Two such products are added, and that may take one more."),
            Choice(
                "The largest pair, 2 · 255 · 63 = 32,130, fits",
                "16 bits with a sign hold up to 32,767.",
                right=True,
            ),
            Choice("The sums go on in 32 bits", "Only after the pair has been added, in 16."),
        ),
    ),
)
