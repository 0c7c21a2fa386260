"""Every exception a user can meet.

SDXLError
├── InputError           the request itself is wrong: a value, a combination, a picture that cannot be read
├── WeightsError         weights cannot be fetched, are incomplete, or do not fit this model
├── DatasetError         what is to be trained on cannot be used: the archive, its images or captions
└── UnsafeContentError   the safety checker left no picture to return

Each message is one sentence that names the value and the remedy: it is all that a client sees.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class SDXLError(Exception):
    """Anything this package refuses or fails to do for a reason the user can act on."""


class InputError(SDXLError, ValueError):
    """The request is refused; nothing was computed."""


class WeightsError(SDXLError):
    """Model weights are missing, damaged, or of another model."""


class DatasetError(SDXLError):
    """The archive to train on is damaged, holds what it must not, or holds no image that can be used."""


class UnsafeContentError(SDXLError):
    """Every generated picture was withheld by the safety checker."""


@contextmanager
def reported() -> Iterator[None]:
    """Put the traceback of whatever is not the user's to mend into the logs: Cog passes on the message only."""
    try:
        yield
    except SDXLError:
        raise
    except Exception:
        traceback.print_exc()
        raise
