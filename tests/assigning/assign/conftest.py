"""Files whose tensors are assigned; made once and never changed."""

import h5py
import ml_dtypes
import numpy as np
import pytest

from support.pairs import values


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Two files with a bit of everything."""
    paths = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("entries") / f"{seed}.h5"
        with h5py.File(path, "w") as file:
            file["a/kernel"] = values(seed=seed)
            file["a/double"] = values(dtype="float64", seed=seed)
            file.create_dataset("a/gzip", data=values((50, 40), seed=seed), chunks=(10, 40), compression="gzip")
            file["a/scalar"] = np.float32(seed + 1)
            file["a/empty"] = values((0, 4))
            file["a/opaque"] = values(dtype=ml_dtypes.bfloat16, seed=seed).view("V2")
            file["a/big_endian"] = values(seed=seed).astype(">f4")
            file["a/large"] = values((300, 200), seed=seed)
        paths.append(path)
    return paths
