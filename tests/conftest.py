"""What all tests share."""

import os

from hypothesis import Phase, settings

# No window, and no lesson's backend, for the figures that tests draw.
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, on every machine. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
# tools/mutants.py runs the tests thousands of times, and asks only whether they fail.
quick = {"max_examples": 30, "phases": [Phase.explicit, Phase.generate]}
settings.register_profile("mutants", settings.get_profile("fixed"), **quick)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
