"""Questions of lesson 06, quantization-aware training."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "06.a",
        "The forward pass contains `torch.round`, and you call `backward()`. What gradient arrives at the weights?",
        (
            Choice(
                "Twice the rounded weight: the slope of the square",
                "That slope arrives at the *rounded* weights. The chain rule then multiplies it by the slope of "
                "rounding itself, and the next cell prints the product.",
            ),
            Choice(
                "None: rounding cannot be differentiated, so PyTorch refuses",
                "At its jumps it cannot. Everywhere else it can, and PyTorch returns what calculus says there.",
            ),
            Choice("0 for every weight", "Between two jumps a staircase is flat.", right=True),
            Choice(
                "About what it would be without rounding",
                "From far away a staircase looks like a straight line. But a derivative looks at one place only.",
            ),
        ),
    ),
    Question(
        "06.b",
        "From useless to good. How many of the 89,400 codes are others than before?",
        (
            Choice(
                "More than half",
                "So would it be if the codes had been wrong. Nearly all were right, or did not matter: see the next cell.",
            ),
            Choice(
                "About a quarter", "Still far too many. A latent weight has to cross a middle between two ticks first."
            ),
            Choice("A few in a hundred", "Few weights were near enough to a jump, and few are enough.", right=True),
            Choice(
                "None: the biases have learnt it",
                "They have learnt too. The cells after the next train the biases alone.",
            ),
        ),
    ),
    Question(
        "06.c",
        "Every weight and bias stays as it was, and the network as poor as after min-max. Only its 210 scales learn, for "
        "40 steps. What will it read then?",
        (
            Choice(
                "Hardly more: what a network knows is in its weights",
                "It is in them, and they are still there. What hides them is a step so long that nearly all become 0.",
            ),
            Choice(
                "About half of the digits",
                "Each row needs only one number to be right: how long its step is. Forty steps are enough for that.",
            ),
            Choice(
                "More than nine digits in ten",
                "The weights are as good as ever. A shorter step makes them −1, 0 and 1 again, where they were nearly all 0.",
                right=True,
            ),
        ),
    ),
    Question(
        "06.d",
        "Four trainings of the same length. Scales start from min-max or from MSE, and are found again in each step "
        "(straight through) or learnt (LSQ). What makes the larger difference?",
        (
            Choice(
                "The gradient: LSQ wins from both starts",
                "From a bad start it does. From a good one there is little left for it to find: see the last two bars.",
            ),
            Choice(
                "The start: from MSE, both gradients end alike",
                "A search has found a good range already. Learning finds one in time, and 79 steps are little time.",
                right=True,
            ),
            Choice(
                "Neither: training makes up for any start",
                "It makes up for much. But straight through never leaves the min-max rule: it finds that range again "
                "and again.",
            ),
        ),
    ),
    Question(
        "06.e",
        "PTQ with the MSE range against QAT from the same start, at 2, 3 and 4 bits: where will you see a difference?",
        (
            Choice(
                "At all three: training cannot hurt",
                "It can, a little: a few hasty steps move a network that was finished. Where nothing is lost, nothing can "
                "be won.",
            ),
            Choice(
                "At 3 and 2 bits",
                "Three bits have 7 values for a weight, and with a good range PTQ loses nearly nothing.",
            ),
            Choice("At 2 bits only", "There PTQ loses something, so there is something to win back.", right=True),
            Choice(
                "At 4 bits most of all: the gradients are best there",
                "They are: the staircase is finest. But at 4 bits PTQ has left nothing to repair.",
            ),
        ),
    ),
    Question(
        "06.q1",
        "Codes go from −1 to 1. Two weights are 1.4 and 1.6 times the scale. Which gets a straight-through gradient?",
        (
            Choice("Both", "1.6 is rounded to 2, and the clamp moves it to 1: slope 0."),
            Choice("1.4 only", "It is rounded to 1. 1.6 is rounded to 2, and then clamped.", right=True),
            Choice(
                "Neither: both lie beyond the last tick", "That is LSQ's mask. Here 1.4 is rounded to 1, not clamped."
            ),
        ),
    ),
    Question(
        "06.q2",
        "A training rounds the weights themselves after each step. Why is that no QAT?",
        (
            Choice(
                "Moves shorter than half a step are lost each time",
                "There is nothing in which they could add up.",
                right=True,
            ),
            Choice("Its forward pass does not round", "It does: the weights lie on ticks all the time."),
            Choice(
                "Without an autograd.Function the gradient is 0",
                "There is no rounding in its graph, so the gradient is an ordinary one. What is done with it is lost.",
            ),
        ),
    ),
    Question(
        "06.q3",
        'How do you see in one line that a "QAT" rounds nothing while it trains?',
        (
            Choice("Its loss falls", "A float network's loss falls as well."),
            Choice(
                "Count its fake-quantize modules",
                "There are none, and its output equals the float network's.",
                right=True,
            ),
            Choice("Count its observers", "A QAT has observers, too. They look, and do not round."),
        ),
    ),
    Question(
        "06.q4",
        "You measure the accuracy on test images, and forget `model.eval()`. What goes wrong?",
        (
            Choice(
                "The test images take part in choosing the ranges",
                "In training mode the observers of the inputs go on watching.",
                right=True,
            ),
            Choice("The weights go on learning", "They move only in `optimizer.step()`."),
            Choice("Nothing: these layers have no dropout", "They have observers, which watch in training mode."),
        ),
    ),
    Question(
        "06.q5",
        "PTQ at 4 bits keeps your network's accuracy. A colleague proposes QAT at 4 bits. What do you answer?",
        (
            Choice("Yes: QAT is always at least as good", "At 4 bits you could not tell the gain from luck."),
            Choice("Yes, and it runs faster than PTQ", "After `convert`, both are the same integer layers."),
            Choice(
                "There is nothing to gain; let us look at 2 or 3 bits",
                "Begin with PTQ there, and see what is missing.",
                right=True,
            ),
        ),
    ),
)
