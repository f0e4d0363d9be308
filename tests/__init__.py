"""Checks every annotated call into msp_lens while the tests run, shapes included."""

from beartype import BeartypeConf, beartype

# An int will do for a float, as everywhere in Python.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
