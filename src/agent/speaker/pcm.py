"""Sound as it leaves the room: 24 kHz mono, 16 bit."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE: Final = 24_000

Samples = NDArray[np.int16]
