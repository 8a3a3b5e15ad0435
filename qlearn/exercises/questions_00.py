"""Questions of lesson 00, start here."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "00.a",
        "A network reads handwritten digits and is right 98 times out of 100. Its weights are stored with fewer and "
        "fewer bits. Where does it begin to misread digit after digit?",
        (
            Choice(
                "Below 16 bits",
                "At 8 bits it misreads one digit more than in float32. Move the slider, and see how far it goes.",
            ),
            Choice("Below 8 bits", "Many expect it there. Move the slider: it holds out longer."),
            Choice(
                "Below 3 bits",
                "Down to 3 bits next to nothing happens. Move the slider, and then choose the other range.",
                right=True,
            ),
            Choice("Not even at 1 bit", "With one bit hardly anything of a weight is left. Move the slider."),
        ),
    ),
    Question(
        "00.q1",
        "A model has 1 billion parameters. How large is it at 4 bits?",
        (
            Choice("4 GB", "That would be 32 bits, four bytes for each parameter."),
            Choice("1 GB", "That would be one byte, 8 bits, for each parameter."),
            Choice("0.5 GB", "Half a byte each, and a little for what is stored beside them.", right=True),
            Choice("0.25 GB", "That would be 2 bits for each parameter."),
        ),
    ),
    Question(
        "00.q2",
        "Why does a language model write faster when its weights are smaller, even on the same processor?",
        (
            Choice("It has fewer parameters to multiply with", "It has as many as before. Each of them is smaller."),
            Choice(
                "For each token all weights are read from memory, and memory is what it waits for",
                "Half the bytes, half the wait.",
                right=True,
            ),
            Choice("It gives shorter answers", "The answers have nothing to do with the width of the weights."),
        ),
    ),
    Question(
        "00.q3",
        "A sum and a product of float32 become a sum and a product of 8-bit integers. Which of the two saves more picojoules?",
        (
            Choice("The sum", "In proportion it does; but it was cheap before. Look at the table of energies again."),
            Choice(
                "The product", "It saves less in proportion, and more in picojoules: it was the dearer one.", right=True
            ),
            Choice("Both the same", "Look at the table of energies again, and subtract."),
        ),
    ),
    Question(
        "00.q4",
        "You skip an exercise. Which later cells fail?",
        (
            Choice(
                "All that use the function I have not written",
                "They use the package's function, so that you can go on.",
            ),
            Choice("None", "Exercises may stay unsolved. You can come back.", right=True),
            Choice("Only the next one", "Not even that one: the cells between exercises stand on their own."),
        ),
    ),
    Question(
        "00.q5",
        "At 2 bits one choice ruined the network, and another saved it. What was chosen?",
        (
            Choice("How many weights it has", "Their number stayed the same."),
            Choice("Which digits it was tested on", "The digits stayed the same."),
            Choice(
                "Which numbers the few codes stand for",
                "The same two bits, other numbers behind them. Lesson 02 is about that choice.",
                right=True,
            ),
            Choice("How it was trained", "It was not trained again. (Lesson 06 does that.)"),
        ),
    ),
)
