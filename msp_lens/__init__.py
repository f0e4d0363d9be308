"""Belief-state geometry in transformers: train on a known process, probe the residual stream, steer its beliefs.

The notebook face. Names load on first use, so that importing the package costs nothing; `__init__.pyi` lists them and
where they live.
"""

import lazy_loader

from msp_lens._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
