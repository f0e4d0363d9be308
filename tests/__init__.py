"""Checks annotated calls into msp_lens while the tests run, shapes included.

Of each function the first calls in a test are checked: they show what there is to see, and to check every call of a
loop would take most of the time.
"""

import functools
import inspect
from collections import Counter

import jaxtyping
from beartype import BeartypeConf, beartype

CALLS_OF_EACH = 2
# An int will do for a float, as everywhere in Python.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
# By function, in the test that runs.
calls = Counter()


def first_calls_jaxtyped(*, typechecker, jaxtyped=jaxtyping.jaxtyped):
    """`jaxtyping.jaxtyped` for the first calls of a function in a test; afterwards the function itself is called."""

    def decorated(function):
        if inspect.isclass(function) and getattr(function.__init__, "__globals__", None) is globals():
            # Its `__init__` was decorated by itself.
            return function
        if not inspect.isfunction(function):
            return jaxtyped(function, typechecker=typechecker)

        @functools.cache
        def checked():
            # Made at the first call: most functions are never called by most workers.
            return jaxtyped(function, typechecker=typechecker)

        @functools.wraps(function)
        def sometimes_checked(*args, **kwargs):
            if jaxtyping.config.jaxtyping_disable or calls[function] >= CALLS_OF_EACH:
                return function(*args, **kwargs)
            calls[function] += 1
            return checked()(*args, **kwargs)

        return sometimes_checked

    return decorated


# What the import hook of jaxtyping's plugin for pytest decorates each function with.
jaxtyping.jaxtyped = first_calls_jaxtyped
