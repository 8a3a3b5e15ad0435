"""Questions of lesson 05, post-training quantization."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "05.a",
        "1,000 digits pass by in front of the three layers. Where do the ranges of the three inputs begin?",
        (
            Choice(
                "All three at 0",
                "Pixels begin there, and the other two inputs come out of a ReLU. The next cell prints them.",
                right=True,
            ),
            Choice(
                "The first at 0, the other two below it",
                "What a layer puts out can be negative. But between it and the next layer there is a ReLU.",
            ),
            Choice(
                "All three below 0: half of the weights are negative",
                "These are ranges of inputs, not of weights. What is the darkest a pixel can be, and what does a ReLU do?",
            ),
        ),
    ),
    Question(
        "05.b",
        "2-bit activations, ranges by min-max. Do you calibrate with 10 images or with 1,000?",
        (
            Choice(
                "1,000: a range is the better, the more it has seen",
                "Of an average that would be true. But what can min-max do when one more image comes?",
            ),
            Choice(
                "10",
                "With each image min-max can only get wider, and the three steps of 2 bits soon are too coarse. See the next cell.",
                right=True,
            ),
            Choice(
                "It makes no difference: digits are alike",
                "Most are. Min-max remembers the one that is not. See the next cell.",
            ),
        ),
    ),
    Question(
        "05.c",
        "Both memories start anew, and the same ten batches come backwards. Which one ends where it did?",
        (
            Choice(
                "Min-max and the moving average",
                "An average of ten numbers would. This one fades: of all batches the first one weighs most here.",
            ),
            Choice(
                "Min-max only",
                "The largest of ten numbers is the largest in any order. A memory that fades depends on the order.",
                right=True,
            ),
            Choice("The moving average only", "It begins with another batch now. And the maximum has no order at all."),
            Choice("Neither", "Take the maximum of 3, 1, 2, and of 2, 1, 3."),
        ),
    ),
    Question(
        "05.d",
        "2-bit weights, one scale for a whole layer, min-max: the network breaks. What brings back more?",
        (
            Choice(
                "A scale for each channel",
                "It helps, and not enough: in each row the largest weight still sets the step.",
            ),
            Choice(
                "A better range: MSE",
                "Three values are left. If they stand where most weights are, even one scale for all will do.",
                right=True,
            ),
            Choice(
                "Nothing: 2 bits are too few for this network",
                "Three values for each weight are little, and yet enough, as the next cell shows.",
            ),
        ),
    ),
    Question(
        "05.q1",
        "Why does the bias need the scale `s_x · s_w`, and not one of its own?",
        (
            Choice(
                "It is added to the accumulator, whose unit is worth that much",
                "The sums of products of codes have this step, so the bias must be an integer on the same grid.",
                right=True,
            ),
            Choice(
                "Its values are too small for 8 bits", "It is stored in 32 bits. The question is what one step means."
            ),
            Choice(
                "To save the bytes of another scale",
                "Four bytes are not the reason. With another scale one could not add it to the sum at all.",
            ),
        ),
    ),
    Question(
        "05.q2",
        "Four workers calibrate on a quarter of the images each. Which observers can be merged?",
        (
            Choice(
                "All: the four ranges are averaged",
                "The mean of four largest values is not the largest value of all, and four medians make no median.",
            ),
            Choice("Only min-max", "Counts add up as well, if the bins are the same on all four."),
            Choice(
                "Min-max, and histograms with fixed bins",
                "The largest of four maxima, and sums of counts, are those of all images. So are the percentile and the MSE "
                "range, made of counts. "
                "Of four moving averages nobody knows which batches came first.",
                right=True,
            ),
            Choice(
                "None without all images in one place", "Remember less: which statistics of the parts give the whole?"
            ),
        ),
    ),
    Question(
        "05.q3",
        "A service answers requests in batches of changing size, with a dynamic range for each batch. What will users notice?",
        (
            Choice(
                "The same request gets different answers",
                "Its range depends on the others in its batch. A range for each row cures it.",
                right=True,
            ),
            Choice("Nothing: the range always fits", "It fits the batch. And whose values are in that batch?"),
            Choice(
                "The first request is slow, as it is calibrated",
                "A dynamic range needs no calibration. Each request pays for a look at its values.",
            ),
        ),
    ),
    Question(
        "05.q4",
        "Your observers are still in front of the layers. May they watch while you measure the accuracy?",
        (
            Choice(
                "Yes: they see no labels",
                "They see images, and choose scales for them. The accuracy is then for images that had a say.",
            ),
            Choice("Yes, as long as the accuracy does not change", "Then you have looked at the test to decide."),
            Choice(
                "No: those images would help to choose the scales",
                "Test images judge, once. That is why `qlearn`'s observers look only inside `nn.calibrate`.",
                right=True,
            ),
        ),
    ),
    Question(
        "05.q5",
        "A network of 100 MB shrinks to 14 MB with 4-bit weights. Somebody expected 12.5. Where is the rest?",
        (
            Choice(
                "In scales, biases, and layers that stayed in float",
                "They keep 4 bytes each, and the smaller the codes are, the more they count.",
                right=True,
            ),
            Choice("In padding: no computer stores half a byte", "Two codes share a byte: they are packed."),
            Choice("In the activations", "They are made anew for each image, and are in no file."),
            Choice("In the zero points of the weights", "Symmetric weights have none worth the name: it is always 0."),
        ),
    ),
)
