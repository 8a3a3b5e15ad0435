"""The lessons' exercises: check an attempt, get a hint, see the solution.

exercises.check("01.2", my_function)      exercises.hint("01.2")      exercises.solution("01.2")
"""

from qlearn.exercises.shelf import check, find, hint, ids, solution, solution_source

__all__ = ["check", "find", "hint", "ids", "solution", "solution_source"]
