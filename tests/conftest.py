"""What all tests share."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

# No window, and no lesson's backend, for the figures that tests draw.
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, on every machine. HYPOTHESIS_PROFILE=explore looks for new ones. How long they take
# says how busy the machine is, and nothing about the code.
slowly = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", **slowly, derandomize=True, database=None, print_blob=True)
settings.register_profile("explore", **slowly, max_examples=2000, print_blob=True)
# tools/mutants.py runs the tests thousands of times, and asks only whether they fail.
quick = {"max_examples": 30, "phases": [Phase.explicit, Phase.generate]}
settings.register_profile("mutants", settings.get_profile("fixed"), **quick)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def patient_checkers(request, monkeypatch):
    """How long an answer may take says how busy the machine is, too: a test that is not about it waits."""
    if "exercises" in request.module.__name__:
        for limit in ("checking.SECONDS", "challenges.SECONDS", "shelf.IN_THE_NETWORK", "lesson_05.PATIENCE"):
            monkeypatch.setattr(f"qlearn.exercises.{limit}", 600.0)
