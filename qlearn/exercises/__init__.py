"""The lessons' exercises: check an attempt, get a hint, see the solution.

exercises.check("01.2", my_function)      exercises.hint("01.2")      exercises.solution("01.2")
"""

from qlearn.exercises.checking import Exercise, Mistake, Result
from qlearn.exercises.shelf import check, find, hint, ids, solution, solution_source

__all__ = ["Exercise", "Mistake", "Result", "check", "find", "hint", "ids", "solution", "solution_source"]
