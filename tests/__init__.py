"""Checks annotated calls into msp_lens while the tests run, shapes included.

Of each function the first calls in a test are checked: they show what there is to see, and to check every call of a
loop would take most of the time.
"""

import functools
from collections import Counter

from beartype import BeartypeConf, beartype

CALLS_OF_EACH = 2
# By function, in the test that runs.
calls = Counter()


def typechecked(function):
    """The function with its annotations checked in its first calls of a test."""
    # An int will do for a float, as everywhere in Python.
    checked = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    if checked is function:
        return function

    @functools.wraps(function)
    def sometimes_checked(*args, **kwargs):
        calls[function] += 1
        return (checked if calls[function] <= CALLS_OF_EACH else function)(*args, **kwargs)

    return sometimes_checked
