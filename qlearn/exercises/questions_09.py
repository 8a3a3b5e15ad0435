"""Questions of lesson 09, a language model in four bits."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "09.a",
        "C babbles: it is one of the two copies with 2 bits. Which is the other?",
        (
            Choice("A", "It invents words, and yet it sounds like English: two bits a weight.", right=True),
            Choice("B", "Look at its words: they are all in a dictionary, or nearly. Is that so for the others?"),
            Choice("D", "Look at its words: they are all in a dictionary, or nearly. Is that so for the others?"),
            Choice("One cannot tell", "Of B and D that is true. But one of the three invents words: which?"),
        ),
    ),
    Question(
        "09.b",
        "The fourth level costs a zero point for each row. By MSE, 2 bits have gone from 4.29 to 5.44. How much of that "
        "does it win back?",
        (
            Choice(
                "Next to nothing: the weights are symmetric",
                "They are. But three levels waste a quarter of the codes, and with so few that counts.",
            ),
            Choice("About half", "Four levels instead of three, for 5 % more bytes.", right=True),
            Choice("All of it", "Four levels are still only four. Run the next cell."),
            Choice(
                "It gets worse: 0 is no level any more",
                "Asymmetric ranges hold 0 exactly as well (lesson 01): the zero point is a whole number.",
            ),
        ),
    ),
    Question(
        "09.c",
        "The planted model computes the same as before. What happens if its weights and activations get 8 bits, "
        "with one range for each layer's inputs?",
        (
            Choice(
                "Nothing: 8 bits have been enough for everything so far",
                "They were, for even values. What is the step of a range that reaches a channel 256 times as large?",
            ),
            Choice(
                "It reads a little worse, as with 4 bits",
                "Count: 255 steps in all, and one channel needs them. How many are left for the others?",
            ),
            Choice(
                "It breaks down",
                "One channel sets the step, and nearly all others are rounded to 0.",
                right=True,
            ),
        ),
    ),
    Question(
        "09.d",
        "Now round the weights alone, to 3 bits with one range a row. Never planted, the model then reads with 4.60. "
        "Which planted one reads clearly worse?",
        (
            Choice(
                "That with 2 channels, 256-fold",
                "It ruined activations: their one range had to reach the farthest. But what happened to the columns of "
                "the weights, and to how many of them?",
            ),
            Choice(
                "That with 24 channels, 16-fold",
                "Each of its columns is lost as wholly as those of the other, and there are twelve times as many.",
                right=True,
            ),
            Choice(
                "Neither: weights have no outliers",
                "Right, planting has made some columns small, not large. What does rounding make of a small one?",
            ),
        ),
    ),
    Question(
        "09.e",
        "Five copies with 4 bits for weights and activations, a range for each token. Which reads best?",
        (
            Choice("The planted one", "Each token has its two outliers, and 4 bits have 15 steps in all."),
            Choice("The smoothed one", "It can undo what was planted. Can it be better than a model without?"),
            Choice(
                "The rotated one, turned before down as well",
                "Rotations leave no outlier anywhere, planted or not.",
                right=True,
            ),
            Choice("The one that was never planted", "It has no planted outliers. Has it none of its own?"),
        ),
    ),
    Question(
        "09.f",
        "The perplexity of this cache is hardly worse than in float. Is the number to be trusted?",
        (
            Choice("Yes: it was measured on the same text", "It was. But with ranges that knew the end of each text."),
            Choice(
                "No: each letter's codes depend on letters that come later",
                "When the model writes, those letters are not there yet: it will compute other numbers.",
                right=True,
            ),
            Choice(
                "Yes: a range is only a scale, it says nothing of the letters",
                "It says how large the largest is. The logits of earlier letters have changed, as the cell shows.",
            ),
        ),
    ),
    Question(
        "09.q1",
        "Model A has perplexity 12 on a novel, model B 9 on a newspaper. Which is better?",
        (
            Choice("B: less surprise", "On an easier text, perhaps. Nothing follows from numbers on two texts."),
            Choice("A: novels are harder", "Perhaps, and by how much? Nothing follows from numbers on two texts."),
            Choice("One cannot say", "Both must read the same text, cut into the same pieces.", right=True),
        ),
    ),
    Question(
        "09.q2",
        "2 bits with a float32 scale for every 32 weights: how many bits is a weight?",
        (
            Choice("2", "And where are the scales?"),
            Choice("2.06", "That is 2 + 2 / 32. A scale has 32 bits."),
            Choice("3", "2 + 32 / 32. For the same bytes you get 3 bits and one scale a row.", right=True),
        ),
    ),
    Question(
        "09.q3",
        "Where do the factors of SmoothQuant go when the model runs?",
        (
            Choice(
                "Each activation is divided by its factor",
                "That would cost time. What comes in front of the layer, and has weights of its own?",
            ),
            Choice(
                "Into the weights of the norm before, and of the layers behind",
                "The model is another one, which computes the same; nothing is added.",
                right=True,
            ),
            Choice(
                "They are forgotten after calibration",
                "Then the layer would compute something else: the weights were multiplied with them.",
            ),
        ),
    ),
    Question(
        "09.q4",
        "Why may a rotation stand between a norm and a layer?",
        (
            Choice(
                "Because rotations are small",
                "They may be as large as the layer is wide. What of a row does a norm look at?",
            ),
            Choice(
                "Because the norm, without weights, only asks for the length of a row, which a rotation keeps",
                "And the layer's weights are turned likewise.",
                right=True,
            ),
            Choice(
                "Because a norm makes all channels equal",
                "It makes all rows equally long. Their channels may differ by hundreds.",
            ),
        ),
    ),
    Question(
        "09.q5",
        "A model has 4-bit weights. You let it read ever longer texts. What fills the memory?",
        (
            Choice("The weights, they are the model", "They stay as they are, however long the text is."),
            Choice(
                "The cache of keys and values, in the end", "It grows with every token, in every block.", right=True
            ),
            Choice("The logits", "Only those of the last token are needed, and then dropped."),
        ),
    ),
)
