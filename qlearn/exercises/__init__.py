"""The lessons' exercises, challenges and questions.

exercises.check("01.2", my_function)      exercises.hint("01.2")      exercises.solution("01.2")
exercises.challenge("03.C", my_function)  exercises.predict("03.a")   exercises.quiz("03")
"""

from qlearn.exercises.shelf import (
    challenge,
    challenge_ids,
    check,
    find,
    hint,
    ids,
    predict,
    quiz,
    solution,
    solution_source,
)

__all__ = [
    "challenge",
    "challenge_ids",
    "check",
    "find",
    "hint",
    "ids",
    "predict",
    "quiz",
    "solution",
    "solution_source",
]
