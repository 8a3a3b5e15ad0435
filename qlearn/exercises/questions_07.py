"""Questions of lesson 07, repairing post-training quantization."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "07.a",
        "Somebody's `fold` adds the layer's own bias b at the end, as it is. Put into our network, it changes no answer "
        "at all. Why?",
        (
            Choice(
                "A batch norm subtracts the mean, and b with it",
                "In training it does. A finished one subtracts the μ that it remembered, whatever b is now. Look at "
                "our layers for a simpler reason.",
            ),
            Choice(
                "b is small beside the weights",
                "Then the logits would change a little. Not even that happens: how large is b in conv1?",
            ),
            Choice(
                "Our convolutions have no bias",
                "Wherever one has, this `fold` is wrong. A test that cannot fail is no test: try code on a case in "
                "which each of its terms matters.",
                right=True,
            ),
        ),
    ),
    Question(
        "07.b",
        "What else lets any positive factor through, as a ReLU does?",
        (
            Choice(
                "ReLU6, a ReLU that ends at 6",
                "Not where it ends: 8 times a 6 is 48, and ReLU6 never gives more than 6.",
            ),
            Choice("a sigmoid", "At 0 it gives ½ whatever the factor was, and not 8 times ½."),
            Choice(
                "the maximum of two neighbours",
                "The larger one stays the larger one. So a max pooling may stand between the two layers, as in our "
                "network.",
                right=True,
            ),
        ),
    ),
    Question(
        "07.c",
        "The unequal network, weights with 8 bits: what is left of 99 %, with one scale for each layer, and with one "
        "for each row?",
        (
            Choice(
                "99 % with both: 8 bits are plenty",
                "8 bits are plenty where a scale fits. Here one large channel sets the scale, and for a small one only "
                "a few codes are left. The next cell shows it.",
            ),
            Choice(
                "far less with one scale, 99 % again with one for each row",
                "The first half is right, and lesson 03 suggests the second. But the columns of conv2 are unequal as "
                "well, and so are the activations between the layers. Look at the second number below.",
            ),
            Choice(
                "far less with one scale, better with one for each row, but not 99 %",
                "Scales for rows make up for unequal rows. Columns and activations stay unequal.",
                right=True,
            ),
        ),
    ),
    Question(
        "07.d",
        "3 bits, one scale for each layer of the folded network. What is the mean error of a logit over 1,000 images?",
        (
            Choice(
                "nearly 0: errors up and down cancel",
                "They would if they were new for every image. But the weights are rounded once, and each image meets "
                "the same errors. See the bars below.",
            ),
            Choice(
                "a few percent of a typical logit",
                "What a logit gets wrong is far more than that, and in the same direction for most images. See the "
                "bars below.",
            ),
            Choice(
                "for some logits more than half of a typical logit",
                "A weight's error is the same for every image, and inputs after a ReLU are never negative.",
                right=True,
            ),
        ),
    ),
    Question(
        "07.e",
        "2 bits for the whole network. Are GPTQ's weights nearer to the original ones than those that were rounded to "
        "nearest, or further away?",
        (
            Choice(
                "nearer: that is why it is better",
                "No rounding on this grid can be nearer than nearest. What GPTQ makes small is the error of the "
                "outputs; compare the two columns below.",
            ),
            Choice(
                "equally near: it only breaks ties another way",
                "It moves many weights to a tick that is clearly not their nearest. The cell below says how many.",
            ),
            Choice("further away", "It gives up nearness of weights for nearness of outputs.", right=True),
        ),
    ),
    Question(
        "07.f",
        "The budget asks for fewer bytes. Which layer goes down from 8 to 4 bits first?",
        (
            Choice(
                "linear: it suffers most of all, and saves the most bytes",
                "What counts is the harm for each byte saved, and linear saves by far the most bytes.",
                right=True,
            ),
            Choice(
                "conv1: it suffers least",
                "It does little harm, but it hardly saves anything either: the harm for each byte is the largest. The "
                "next cell prints the order.",
            ),
            Choice(
                "conv2: it lies between the two",
                "Its harm is about that of conv1. But linear saves several times as many bytes.",
            ),
        ),
    ),
    Question(
        "07.q1",
        "Why may a batch norm not be folded while the network is trained?",
        (
            Choice(
                "γ and β still change",
                "The weights change as well; one could fold again after each step. Something else changes from batch "
                "to batch.",
            ),
            Choice(
                "It uses each batch's own mean and variance then",
                "So its line changes from batch to batch, and fixed weights cannot do that.",
                right=True,
            ),
            Choice(
                "It is no straight line in training",
                "Within one batch it is one for each channel. But each batch has another.",
            ),
        ),
    ),
    Question(
        "07.q2",
        "A scale for each row repairs rows of unequal size. Why did it not repair the unequal network?",
        (
            Choice(
                "8 bits are too few for rows that differ by a factor of 1,000",
                "With a scale of its own each row uses all its codes, however large the others are.",
            ),
            Choice(
                "The columns of the next layer and the activations are unequal, too",
                "They lie along the axis that is summed up. A scale that changed there could not be taken out of the "
                "sum.",
                right=True,
            ),
            Choice("The biases are unequal, too", "Biases have many more bits. They are not what fails."),
        ),
    ),
    Question(
        "07.q3",
        "Two layers have a sigmoid between them. Can you equalize them?",
        (
            Choice(
                "Yes: it rises everywhere, as a ReLU does",
                "To rise is not enough: f(s · z) must be s · f(z), and a sigmoid ends at 1.",
            ),
            Choice(
                "Yes, with factors below 1",
                "Not with these either: sigmoid(0) is ½, and half of it is not sigmoid(0).",
            ),
            Choice(
                "No",
                "A sigmoid lets no factor through: dividing before it and multiplying behind it changes the function.",
                right=True,
            ),
        ),
    ),
    Question(
        "07.q4",
        "You correct the biases of all layers at once, with shifts measured on the uncorrected network. What goes "
        "wrong?",
        (
            Choice(
                "Nothing: means add up",
                "They would if each layer's shift were its own. It also holds what the layers before it passed on.",
            ),
            Choice(
                "Later layers are corrected too much",
                "Their shifts hold what earlier ones pass on. Once those are corrected, that part is gone.",
                right=True,
            ),
            Choice(
                "Later layers are corrected too little",
                "The other way round: part of what they make up for is no longer there.",
            ),
        ),
    ),
    Question(
        "07.q5",
        "All inputs of a layer are independent of each other, with mean 0. What does GPTQ gain over rounding to "
        "nearest?",
        (
            Choice(
                "As much as in this lesson",
                "It gains where one weight can make up for another, so where two inputs are large together.",
            ),
            Choice(
                "Nothing",
                "H is diagonal then. No weight can make up for another, and each goes to its nearest tick.",
                right=True,
            ),
            Choice(
                "It loses: its weights are further away",
                "They are not, here: with a diagonal H each weight wants to be what it is.",
            ),
        ),
    ),
)
