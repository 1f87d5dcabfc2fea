"""A process like that of `flagen.trial`, without torch: it crashes, hangs or answers."""

from __future__ import annotations

import os
import time
from itertools import count
from multiprocessing.connection import Connection


def serve(setup: None, pipe: Connection) -> None:
    """Ends the process with 8 warps, never answers for 16, loses the GPU with 2."""
    pipe.send("ready")
    for served in count():
        warps = pipe.recv()["warps"]
        if warps == 8:
            os._exit(1)
        if warps == 16:
            time.sleep(1000)
        refused = "CUDA error" if warps == 2 else ""
        pipe.send(({"times": {"served": float(served)}, "refused": refused}, warps != 2))
