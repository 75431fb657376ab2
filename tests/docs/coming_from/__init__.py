"""Compares `inbatch_neg` with the libraries of docs/coming-from.

    pip install -e ".[benchmark,torch]"
    python -m tests.docs.coming_from            # every page
    python -m tests.docs.coming_from tfrs       # one page

Two things are compared, to 1e-5, in a process of its own for each library. The
code of the page, before and after, trains the same model: the losses of each
step must be equal, and be those that the page gives. And the module of this
name says in equations what the page says in its tables. The exit code is 1 if
anything differs.
"""
