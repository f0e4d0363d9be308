"""Belief-state geometry in transformers: train on a known process, probe the residual stream, steer its beliefs.

The notebook face. Names load on first use, so that importing the package costs nothing; `__init__.pyi` lists them and
where they live.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("msp-lens")
