"""Questions of lesson 10, shipping it."""

from qlearn.exercises.questions import Choice, Question

QUESTIONS = (
    Question(
        "10.a",
        "All five read the same digits. Which of them take less time than the float network in PyTorch?",
        (
            Choice(
                "All that are quantized: 8 bits are a quarter of 32",
                "A quarter of the bytes, if they are stored as bytes. What does fake quantization store, and what does it multiply?",
            ),
            Choice(
                "Integers by hand and ONNX Runtime int8: they multiply codes",
                "One of them does so with instructions that are made for it. What has PyTorch for the other?",
            ),
            Choice(
                "ONNX Runtime int8, and perhaps ONNX Runtime in float",
                "Codes alone are not quicker. A program is, whose innermost loop multiplies them.",
                right=True,
            ),
            Choice(
                "None: the number of products is the same",
                "It is. But a processor may do more products of bytes in one instruction than of floats.",
            ),
        ),
    ),
    Question(
        "10.b",
        "A wide network, one example at a time. Codes of 4 bits are half the bytes of those of 8. How long does the file take?",
        (
            Choice(
                "About half as long as with 8 bits: it waits for bytes, and they are half",
                "So the roofline has it. But who multiplies a code of 4 bits? Look into the engine in the next cells.",
            ),
            Choice(
                "About as long as with 8 bits",
                "That would need a product of 4-bit codes. Look into the engine in the next cells.",
            ),
            Choice(
                "Longer than in float",
                "Before it multiplies, ONNX Runtime turns the codes into floats, at every call.",
                right=True,
            ),
        ),
    ),
    Question(
        "10.c",
        "The CNN: two convolutions and a linear layer, with codes of 8 bits in ONNX Runtime. Compared with float it is…",
        (
            Choice(
                "two to three times as quick, as the MLP is",
                "Tempting: it has far more products. But they lie in two layers that are not alike.",
            ),
            Choice(
                "about four times as quick: convolutions have many operations for each byte",
                "Many, yes. Is an operation all that a layer does for an output?",
            ),
            Choice(
                "slower",
                "One of its layers loses more than the other wins. The next cells find out which, and why.",
                right=True,
            ),
        ),
    ),
    Question(
        "10.d",
        "Put three channels of zeros beside the image, and zeros as their weights. The first layer now has four times as many "
        "products, and gives the same. The int8 network becomes…",
        (
            Choice(
                "slower: four times the products of that layer",
                "If products were what it spends its time on. They are not.",
            ),
            Choice(
                "as slow as before: products with 0 are skipped",
                "No dense product looks whether a number is 0.",
            ),
            Choice(
                "quicker",
                "Four bytes at a time is what the instruction takes. Now it can be used.",
                right=True,
            ),
        ),
    ),
    Question(
        "10.e",
        "Four workers look at a quarter of the data each. Which statistic cannot be merged into what one worker would have "
        "found on all of it?",
        (
            Choice("The smallest and the largest value", "The smallest of four smallest is the smallest of all."),
            Choice(
                "A moving average of the smallest and the largest values",
                "It weighs the last batches most. Of four workers, whose batch was the last?",
                right=True,
            ),
            Choice(
                "A histogram with bins that never move",
                "The same bins on all workers: their counts add up.",
            ),
        ),
    ),
    Question(
        "10.q1",
        "A fake-quantized network takes ten times as long as float. What is wrong?",
        (
            Choice("The bits: with 4 it would be quicker", "It computes with floats, whatever the number of bits."),
            Choice(
                "Nothing: it rounds floats and multiplies floats",
                "It shows what quantization does to the numbers, and is trained with. Another program makes it quick.",
                right=True,
            ),
            Choice(
                "It was not converted to integers",
                "Then it would be smaller. Quick it is in an engine that multiplies bytes.",
            ),
        ),
    ),
    Question(
        "10.q2",
        "A layer takes 2 operations for each byte, and the machine can do 10 while a byte arrives. What helps?",
        (
            Choice("Instructions that multiply faster", "They would wait for bytes even longer."),
            Choice(
                "Fewer bits a weight, or a larger batch",
                "Fewer bytes, or more operations for the same bytes.",
                right=True,
            ),
            Choice("A second network beside it", "Both would wait for the same memory."),
        ),
    ),
    Question(
        "10.q3",
        "In a file with QDQ a layer's weights are int8. What does an engine without integer products do with it?",
        (
            Choice("It refuses the file", "DequantizeLinear is an operation like any other, and leads to floats."),
            Choice(
                "It computes in float on the dequantized numbers, and gives the same up to rounding",
                "The file says what the numbers are. How they are multiplied is the engine's business.",
                right=True,
            ),
            Choice("It rounds the weights once more", "They are codes already, and each stands for one number."),
        ),
    ),
    Question(
        "10.q4",
        "You find a GGUF file of a model with 7 billion weights in Q4_0. How large is it, at least?",
        (
            Choice("3.5 GB", "4 bits a weight. And where is the scale of each block?"),
            Choice("3.9 GB", "18 bytes for 32 weights are 4.5 bits for each.", right=True),
            Choice("7 GB", "That would be one byte for each weight."),
        ),
    ),
    Question(
        "10.q5",
        "Calibration on 8 workers gives another range than on one. What do you check first?",
        (
            Choice(
                "Whether float32 sums were in another order",
                "Ends and counts need no sums of floats: they are equal in any order.",
            ),
            Choice(
                "Whether the observer can be merged, and whether each image went to one worker alone",
                "A moving average cannot; an image that two saw counts twice.",
                right=True,
            ),
            Choice("Nothing: workers are random", "Nothing in it is. Merged histograms are equal bit for bit."),
        ),
    ),
)
