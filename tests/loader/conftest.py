"""Two files of one model, made once and never changed, and models to load them into."""

import keras
import pytest

from support import attacks, faults, models
from support import differential as d
from support.loading import Brake, dense, values
from support.running import set_runtime


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Two files of `dense`, by their seeds, and one that does not fit."""
    folder = tmp_path_factory.mktemp("files")
    found = {seed: d.saved(dense, folder / f"{seed}.weights.h5", seed) for seed in (1, 2)}
    found["bad"] = d.saved(lambda: models.chain(keras, 5, 4, 3), folder / "bad.weights.h5")
    attacks.settle(*found.values())
    return found


@pytest.fixture(scope="session")
def contents(files):
    """What is in the two files."""
    stock = d.fresh(dense)
    found = {}
    for seed in (1, 2):
        stock.load_weights(files[seed])
        found[seed] = values(stock)
    return found


@pytest.fixture
def model():
    return d.perturb(d.fresh(dense), 0.5)


@pytest.fixture
def copy(files, tmp_path):
    """A copy of the first file, which tests may spoil."""
    path = tmp_path / "copy.weights.h5"
    path.write_bytes(files[1].read_bytes())
    return path


class Reads:
    """What happens before each read of tensors; a test may put something else there at any time."""

    def before(self, number, offset, wanted):
        """Do nothing."""


@pytest.fixture(autouse=True)
def reads(monkeypatch):
    # Always: a loader keeps the runtime that it began with.
    found = Reads()

    def before(*read):
        found.before(*read)

    set_runtime(monkeypatch, make_source=faults.faulty(before=before))
    return found


@pytest.fixture
def brake(reads):
    found = Brake()
    reads.before = found.hold
    yield found
    found.may_go.set()
