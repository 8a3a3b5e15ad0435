# Each target is one line; tools/dev.py makes .venv and installs what is missing. Without make: python tools/dev.py lab
PYTHON ?= python3
.PHONY: lab reset test lessons weights bench mutants test-colab test-processors wheel links front site lite

# JupyterLab on my_lessons/, copies of the lessons to work in. PORT=8999 chooses the port, BROWSER=none opens no window.
lab: ; @$(PYTHON) tools/dev.py lab
# A fresh copy of one lesson; the one you worked in is kept beside it. LESSON=03 says which, LESSON=all takes all.
reset: ; @$(PYTHON) tools/dev.py reset
# Every check there is.
test: ; @$(PYTHON) tools/dev.py test
# Run the lessons afresh and store their outputs. LESSON=05 runs one.
lessons: ; @$(PYTHON) tools/dev.py lessons
# Train the shipped networks again.
weights: ; @$(PYTHON) tools/dev.py weights
# How quick it is, against named peers. ONLY=quantize runs a part.
bench: ; @$(PYTHON) tools/dev.py bench
# Which small changes to the maths no test notices. MODULE=affine chooses one, AT_MOST=40 takes a sample.
mutants: ; @$(PYTHON) tools/dev.py mutants
# The wheel, the tests and the lessons with Colab's versions, in .venv-colab: 5 GB.
test-colab: ; @$(PYTHON) tools/dev.py test-colab
# The lessons and the tests of the maths as on other processors, with a table. SETTING=nehalem runs one setting.
test-processors: ; @$(PYTHON) tools/dev.py test-processors
# The package as one file in dist/, and the lessons without outputs in dist/lessons/, to upload into Colab.
wheel: ; @$(PYTHON) tools/dev.py wheel
# Stamp into every lesson how Colab opens it: from [project.urls] in pyproject.toml.
links: ; @$(PYTHON) tools/dev.py links
# The pictures of README.md, from the explorers themselves.
front: ; @$(PYTHON) tools/dev.py front
# Every lesson as a page, the glossary, the package: in site/, for any static host. LITE=none leaves out what runs in the browser.
site: ; @$(PYTHON) tools/dev.py site
# The lessons of arrays that run in the browser, with nothing installed, in site/lite/. PYODIDE=folder has its wheels.
lite: ; @$(PYTHON) tools/dev.py lite
