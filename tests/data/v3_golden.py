"""Write the kept stores of format version 3, a draft, and what they hold.

PYTHONPATH=tests/support python tests/data/v3_golden.py
"""

from pathlib import Path

import numpy as np
from stores_v3 import KINDS, make_store_v3

from pipeline.store import open_store

HERE = Path(__file__).parent

for name in KINDS:
    store = open_store(make_store_v3(HERE / f"v3_{name}.zarr", name))
    held = {
        "depth_m": [store.depth_m(number) for number in range(7)],
        "intrinsics_px": [store.intrinsics_px(number) for number in range(7)],
    }
    held |= {signal: [store.signal(signal, number) for number in range(7)] for signal in store.signals}
    held |= {f"feature_{layer}": [store.feature(layer, n) for n in range(7)] for layer in store.feature_layers}
    np.savez_compressed(HERE / f"v3_{name}.npz", **held)
