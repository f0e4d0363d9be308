"""Checks annotated calls into msp_lens while the tests run, shapes included.

Of each function the first calls in a test are checked: they show what there is to see, and to check every call of a
loop would take most of the time.
"""

import functools
from collections import Counter

from beartype import BeartypeConf, beartype

CALLS_OF_EACH = 2
# An int will do for a float, as everywhere in Python.
CONFIG = BeartypeConf(is_pep484_tower=True)
# By function, in the test that runs.
calls = Counter()


def typechecked(function):
    """The function with its annotations checked in its first calls of a test."""
    if not getattr(function, "__annotations__", None):
        return function

    @functools.cache
    def checked():
        # Made at the first call: most functions are never called by most workers.
        return beartype(conf=CONFIG)(function)

    @functools.wraps(function)
    def sometimes_checked(*args, **kwargs):
        calls[function] += 1
        return (checked() if calls[function] <= CALLS_OF_EACH else function)(*args, **kwargs)

    return sometimes_checked
