"""Starts the record of entered pieces in every Python process of a run: Python imports a module of this name itself.

Tests start workers of their own, whose modules must report too.
"""

import os

from tests.fake_cuda.recorder import ENTERED, start

if ENTERED in os.environ:
    start()
