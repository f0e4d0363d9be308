"""Hold a model while it is read or edited: the hooked model itself, for one thread at a time, and not compiled.

A hook acts on whoever calls the model, so two threads that hooked one model at once would read each other's words. And
compiled code was made before our hooks were added: it would ignore them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def unwrapped(model: Any) -> Any:
    """The hooked model within `torch.compile`, `DataParallel` and the like; any other model as it is."""
    while True:
        inside = getattr(model, "_modules", None) or {}
        if "_orig_mod" in inside:
            model = inside["_orig_mod"]
        elif "module" in inside and not hasattr(model, "hook_dict"):
            model = inside["module"]
        else:
            return model


@contextmanager
def holding(model: Any) -> Iterator[None]:
    """Have the model to oneself: other threads that want to hold it wait, and its compiled parts run as written.

    The same thread may hold it again. Hold it, too, to call a model in one thread while another may read or edit it.
    """
    model = unwrapped(model)
    with _GUARD:
        # A reader of symbols holds the model that it reads with.
        lock = _LOCKS.setdefault(getattr(model, "held_as", model), threading.RLock())
    with lock, _EAGER:
        yield


class _Eager:
    """`torch.compiler.set_stance("force_eager")` for as long as any thread is inside: the stance is the process's."""

    def __init__(self) -> None:
        self._inside, self._stance = 0, None

    def __enter__(self) -> None:
        with _GUARD:
            # Without this module nothing has been compiled, and it takes long to import.
            if self._inside == 0 and "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with _GUARD:
            self._inside -= 1
            if self._inside == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_EAGER = _Eager()
