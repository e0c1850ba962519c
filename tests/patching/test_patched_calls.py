"""The calls that go through fastassign: load_model and load_weights, compared with the libraries' own."""

import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from support.differential import KERAS_VERSION, LIBRARIES, observe, perturb, value_of
from support.models import chain
from support.patched import ENDS, accelerated, both, contents, saved, seeded, state, trained

# Imported before anything is replaced, as programs do.
EARLY = {
    "keras.saving.load_model": keras.saving.load_model,
    "keras.models.load_model": keras.models.load_model,
    "tf_keras.saving.load_model": tf_keras.saving.load_model,
    "tf_keras.models.load_model": tf_keras.models.load_model,
}
early_load_weights = keras.saving.load_weights


# load_model


@pytest.mark.parametrize("compiling", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", EARLY)
def test_load_model(name, end, compiling, tmp_path):
    k = LIBRARIES[name.split(".")[0]]
    model = trained(k)
    path = saved(model, tmp_path / end)
    for given in (path, Path(path)):
        first, second, told = both(lambda given=given: EARLY[name](given, compile=compiling))
        assert first.error is None
        assert state(second.result) == state(first.result)
        assert (getattr(second.result, "optimizer", None) is not None) == compiling
        assert told[0].startswith(f"{k.__name__}.") and path in told[0]
    # Not only equal, but what was saved.
    assert [value_of(v).tobytes() for v in second.result.weights] == [value_of(v).tobytes() for v in model.weights]
    if compiling:
        assert slots_of(second.result) == slots_of(first.result)
        # Keras 3 takes back little of the optimizer in a legacy file.
        assert slots_of(second.result) == slots_of(model) or (k is keras and end == "whole.h5")


def slots_of(model):
    own = model.optimizer.variables
    return [value_of(v).tobytes() for v in (own() if callable(own) else own)]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_load_model_with_custom_objects(k, end, tmp_path):
    class Scaled(k.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(4,))
            super().build(shape)

        def call(self, x):
            return x * self.scale

    model = k.Sequential([k.Input((4,)), Scaled(name="s"), k.layers.Dense(2, name="d")])
    path = saved(model, tmp_path / end)
    first, second, _ = both(lambda: k.models.load_model(path, custom_objects={"Scaled": Scaled}))
    assert first.error is None
    assert state(second.result) == state(first.result)
    refused, _, _ = both(lambda: k.models.load_model(path), ours=0)
    assert refused.error is not None


@pytest.mark.parametrize("mode", ["int", "tf_idf"])
@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_load_model_with_assets(k, mode, tmp_path):
    with tf.device("CPU:0"):
        text = k.layers.TextVectorization(output_mode=mode, name="text")
        text.adapt(tf.constant(["one two three", "two three", "three"]))
        inputs = k.Input((1,), dtype="string")
        x = text(inputs)
        x = k.layers.Dense(2, name="d")(x) if mode == "tf_idf" else k.layers.Embedding(9, 3, name="e")(x)
        model = k.Model(inputs, x)
        model.save(tmp_path / "x.keras")

        def load():
            loaded = k.models.load_model(tmp_path / "x.keras")
            return np.asarray(loaded(tf.constant([["two four"], ["one three"]]))).tolist()

        alone = observe(load)
        if alone.error is not None and KERAS_VERSION < (3, 15):
            pytest.skip(f"stock can't: {alone.error}")
        first, second, _ = both(load)
        wanted = np.asarray(model(tf.constant([["two four"], ["one three"]]))).tolist()
    assert second.result == first.result == wanted


def test_load_model_from_a_folder(tmp_path):
    model = trained(keras)
    keras.saving.save_model(model, tmp_path / "x", zipped=False)
    first, second, told = both(lambda: keras.saving.load_model(tmp_path / "x"))
    assert state(second.result) == state(first.result) and str(tmp_path / "x") in told[0]


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_the_archive_is_read_once(k, tmp_path, monkeypatch):
    """To open the weights inside an archive, stock reads all of it: in memory of its own, or piece by piece."""
    path = saved(trained(k), tmp_path / "x.keras")
    library = sys.modules[f"{k.__name__}.src.saving.saving_lib"]
    opened = []
    monkeypatch.setattr(library.H5IOStore, "__init__", lambda *_, **__: opened.append(1))
    with accelerated(ours=1, stock=0):
        k.models.load_model(path)
    assert opened == []


def rewritten(path, **members):
    """Replace members of an archive."""
    other = path.with_name(f"other{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.replace(".", "_"), old.read(name)))
    return str(other)


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_load_model_whose_weights_do_not_fit(k, tmp_path):
    saved(chain(k, 5, 3), tmp_path / "x.keras")
    chain(k, 5, 7).save_weights(str(tmp_path / "y.weights.h5"))
    path = rewritten(tmp_path / "x.keras", model_weights_h5=(tmp_path / "y.weights.h5").read_bytes())
    expect_stocks_error(lambda: k.models.load_model(path))
    # A layer more, in a legacy file.
    with h5py.File(saved(chain(k, 5, 3), tmp_path / "whole.h5"), "r+") as file:
        group = file["model_weights"]
        group.attrs["layer_names"] = [name.encode() for name in [*group.attrs["layer_names"].astype(str), "more"]]
        group.create_group("more").attrs["weight_names"] = [b"w"]
        group["more"]["w"] = np.ones(3)
    expect_stocks_error(lambda: k.models.load_model(tmp_path / "whole.h5"))


def expect_stocks_error(call):
    """Expect fastassign's own error, which is stock's to the letter."""
    first = seeded(call)
    with accelerated(ours=0, stock=0):
        second = seeded(call)
    assert isinstance(second.error, fa.FastAssignError)
    assert isinstance(second.error, type(first.error)) and str(second.error) == str(first.error)


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_load_model_of_what_is_no_model(k, tmp_path):
    (tmp_path / "text.keras").write_text("text")
    (tmp_path / "text.h5").write_text("text")
    for name in ("missing.keras", "missing.h5", "text.keras", "text.h5"):
        first = observe(lambda name=name: k.models.load_model(tmp_path / name))
        assert first.error is not None
        with accelerated(ours=0):
            second = observe(lambda name=name: k.models.load_model(tmp_path / name))
        assert (type(second.error), str(second.error)) == (type(first.error), str(first.error))


# load_weights


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("end", [".h5", ".weights.h5", ".keras", "whole.h5"])
def test_load_weights(k, end, tmp_path):  # the differential tests have the rest
    path = saved(trained(k), tmp_path / end)
    one, other = (perturb(trained(k), 0.5) for _ in range(2))
    one.load_weights(path)
    with accelerated(ours=3, stock=0) as calls:
        assert other.load_weights(path) is None
        assert contents(other) == contents(one)
        perturb(one, 0.5).load_weights(path)
        k.Model.load_weights(perturb(other, 0.5), filepath=Path(path), skip_mismatch=False)
    assert contents(other) == contents(one)
    assert calls[0].report.assigned >= len(one.weights)


@pytest.mark.parametrize("end", [".h5", ".weights.h5", ".keras"])
def test_the_function_load_weights(end, tmp_path):
    path = saved(trained(keras), tmp_path / end)
    one, other = (perturb(trained(keras), 0.5) for _ in range(2))
    one.load_weights(path)
    with accelerated(ours=1, stock=0):
        assert keras.saving.load_weights(other, path) is None
    assert contents(other) == contents(one)
    # One that was imported before reaches files of Keras 3.
    perturb(other, 0.5)
    with accelerated(ours=int(end != ".h5"), stock=0):
        early_load_weights(other, path)
    assert all(np.array_equal(value_of(a), value_of(b)) for a, b in zip(one.weights, other.weights, strict=True))


def test_a_method_of_a_subclass_that_calls_super(tmp_path):
    class Mine(keras.Sequential):
        def load_weights(self, *args, **kwargs):
            super().load_weights(*args, **kwargs)
            return "mine"

    path = saved(chain(keras, 2), tmp_path / "x.weights.h5")
    with accelerated(ours=1, stock=0):
        assert Mine([keras.Input((4,)), keras.layers.Dense(2)]).load_weights(path) == "mine"


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_what_is_called_from_within_goes_to_stock(k, tmp_path):
    inner_path = saved(chain(k, 2), tmp_path / "inner.weights.h5")
    whole = saved(chain(k, 2), tmp_path / "whole.keras")
    seen = []

    class Nesting(k.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(2,))
            super().build(shape)

        def call(self, x):
            return x

        def load_own_variables(self, store):
            chain(k, 2).load_weights(inner_path)
            seen.append(k.models.load_model(whole))
            self.w.assign(store["0"])

    model = k.Sequential([k.Input((2,)), Nesting(name="n")])
    path = saved(model, tmp_path / "x.weights.h5")
    with accelerated(ours=1, stock=0):
        model.load_weights(path)
    assert len(seen) == 1


def test_a_model_that_loads_weights_while_it_is_built(tmp_path):
    path = saved(chain(keras, 2), tmp_path / "inner.weights.h5")

    class Pretrained(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = chain(keras, 2)
            self.inner.load_weights(path)

        def call(self, x):
            return self.inner(x)

    model = keras.Sequential([keras.Input((4,)), Pretrained(name="p")])
    whole = saved(model, tmp_path / "x.keras")
    with accelerated(ours=2, stock=0):
        keras.models.load_model(whole, custom_objects={"Pretrained": Pretrained})


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("end", [".h5", ".weights.h5"])
def test_in_a_traced_function(k, end, tmp_path):
    path = saved(chain(k, 5, 3), tmp_path / end)
    found = []
    for _ in range(2):
        model = chain(k, 5, 3)

        @tf.function
        def step(model=model):
            model.load_weights(path)
            return tf.constant(1)

        with accelerated() if found else ExitStack():
            step()
        found.append([value_of(v).tobytes() for v in model.weights])
    assert found[0] == found[1]


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_warnings_name_the_caller(k, tmp_path):
    path = saved(chain(k, 5, 3), tmp_path / "x.weights.h5")
    model = chain(k, 5, 7)
    with fa.accelerate(), pytest.warns(UserWarning, match="could not be loaded|Could not load") as caught:
        model.load_weights(path, skip_mismatch=True)
    # pytest also keeps what does not match.
    told = [warning.filename for warning in caught if "not be loaded" in str(warning.message) or k is tf_keras]
    assert {Path(name).name for name in told} == {Path(__file__).name}
