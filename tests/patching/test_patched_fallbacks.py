"""What fastassign leaves to the libraries while their calls go through it, and what it does not."""

import io
import shutil
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from support.differential import LIBRARIES, fill, value_of
from support.models import chain
from support.patched import ENDS, accelerated, contents, saved, state, told_why


def test_a_checkpoint_returns_its_status(tmp_path):
    model = chain(tf_keras, 2)
    model.save_weights(str(tmp_path / "ckpt"))
    first, second = told_why(lambda: model.load_weights(str(tmp_path / "ckpt")), "not an HDF5 file")
    assert type(second.result) is type(first.result) is not type(None)
    second.result.assert_consumed()


def test_an_hdf5_file_without_a_suffix(tmp_path):
    path = saved(chain(tf_keras, 2), tmp_path / "x.h5")
    shutil.move(path, tmp_path / "x")
    model = chain(tf_keras, 2)
    with accelerated(ours=1, stock=0):
        model.load_weights(str(tmp_path / "x"))


def test_sharded_weights(tmp_path):
    if not hasattr(sys.modules["keras.src.saving.saving_lib"], "ShardedH5IOStore"):
        pytest.skip("this Keras has no sharded files")
    model = chain(keras, 5, 3)
    model.save_weights(tmp_path / "x.weights.json", max_shard_size=1e-7)
    told_why(lambda: model.load_weights(tmp_path / "x.weights.json"), "sharded")


def test_savedmodel(tmp_path):
    model = chain(tf_keras, 2)
    model.save(str(tmp_path / "x"), save_format="tf")
    _, second = told_why(lambda: tf_keras.models.load_model(str(tmp_path / "x")), "SavedModel")
    assert np.array_equal(second.result.get_weights()[0], model.get_weights()[0])


def test_orbax(monkeypatch, tmp_path):
    """Orbax itself is not at hand: only who is called."""
    api = sys.modules["keras.src.saving.saving_api"]
    if not hasattr(api, "_load_model_from_orbax_checkpoint"):
        pytest.skip("this Keras knows no Orbax")
    monkeypatch.setattr(api, "is_orbax_checkpoint", lambda path: True)
    first, _ = told_why(lambda: keras.models.load_model(str(tmp_path)), "Orbax")
    assert isinstance(first.error, ImportError)
    model = chain(keras, 2)
    told_why(lambda: model.load_weights(str(tmp_path)), "does not read files with such a name")


def test_npz(tmp_path):
    library = sys.modules["keras.src.saving.saving_lib"]
    library.save_model(chain(keras, 2), tmp_path / "x.keras", weights_format="npz")
    # Keras 3.15 writes such files, and can't read them.
    first, second = told_why(lambda: keras.models.load_model(tmp_path / "x.keras"), "NpzIOStore")
    assert first.error or state(second.result) == state(first.result)


def test_an_archive_in_memory(tmp_path):
    library = sys.modules["keras.src.saving.saving_lib"]
    data = Path(saved(chain(keras, 2), tmp_path / "x.keras")).read_bytes()
    first, second = told_why(lambda: library.load_model(io.BytesIO(data)), "from an object")
    assert contents(second.result) == contents(first.result)


def test_an_open_hdf5_file(tmp_path):
    path = saved(chain(tf_keras, 2), tmp_path / "whole.h5")
    with h5py.File(path) as file:
        # Below load_model, what is fastassign's goes through fastassign.
        told_why(lambda: tf_keras.models.load_model(file), f"'{path}'): by the library itself, because a File", ours=1)


def test_a_whole_model_that_is_called_like_weights(tmp_path):
    path = saved(chain(tf_keras, 2), tmp_path / "whole.h5")
    shutil.move(path, tmp_path / "x.weights.h5")
    for k in LIBRARIES.values():
        told_why(
            lambda k=k: k.models.load_model(tmp_path / "x.weights.h5", compile=False),
            "in the format of Keras 3",
            ours=int(k is tf_keras),
        )


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("end", [".h5", ".weights.h5"])
def test_remote_paths(k, end):
    model = chain(k, 2)
    first, _ = told_why(lambda: model.load_weights(f"nowhere://x/y{end}"), "remote")
    assert first.error is not None


@pytest.mark.parametrize(
    ("end", "arguments"),
    [
        (".h5", {"nonsense": 1}),
        (".h5", {"objects_to_skip": []}),
        (".keras", {"objects_to_skip": []}),
        (".weights.h5", {"by_name": False}),
        (".weights.h5", {"by_name": True}),
        (".keras", {"by_name": True}),
        (".weights.h5", {"nonsense": None}),
        (".txt", {}),
    ],
)
def test_arguments_that_keras_refuses(end, arguments, tmp_path):
    path = saved(chain(keras, 2), tmp_path / "x.keras")
    shutil.move(path, tmp_path / f"x{end}")
    model = chain(keras, 2)
    for load in (model.load_weights, lambda path, **further: keras.saving.load_weights(model, path, **further)):
        first, _ = told_why(lambda load=load: load(tmp_path / f"x{end}", **arguments), "")
        assert isinstance(first.error, ValueError)


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_calls_that_python_refuses(k):
    model = chain(k, 2)
    for call in (
        # Not the bound method, which would be the library's own for good.
        lambda: model.load_weights(),  # noqa: PLW0108
        lambda: model.load_weights("x.h5", False, False, None, 5, 6),
        lambda: model.load_weights("x.h5", filepath="y.h5"),
    ):
        first, _ = told_why(call, "does not take these arguments")
        assert isinstance(first.error, TypeError)


@pytest.mark.parametrize("path", [None, b"x.weights.h5", 5, io.BytesIO(b"")])
@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_what_is_no_path(k, path):
    model = chain(k, 2)
    first, _ = told_why(lambda: model.load_weights(path), "is not a path")
    assert first.error is not None


def test_what_is_no_model(tmp_path):
    path = saved(chain(keras, 2), tmp_path / "x.weights.h5")
    first, _ = told_why(lambda: keras.saving.load_weights(object(), path), "is not a model")
    assert isinstance(first.error, AttributeError)


def test_other_backends(monkeypatch, tmp_path):
    path = saved(chain(keras, 2), tmp_path / "x.keras")
    model = chain(keras, 2)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    told_why(lambda: model.load_weights(path), "runs on jax")
    told_why(lambda: keras.models.load_model(path).name, "runs on jax")


def test_a_file_of_objects_to_skip_that_is_read_once(tmp_path):
    path = saved(chain(keras, 2, 3), tmp_path / "x.weights.h5")
    model = chain(keras, 2, 3)
    told_why(lambda: model.load_weights(path, objects_to_skip=iter(model.layers[:1])), "only once")
    with accelerated(ours=1, stock=0):
        model.load_weights(path, objects_to_skip=model.layers[:1])


@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("end", ENDS)
def test_a_file_that_is_replaced_while_the_model_is_built(k, end, tmp_path):
    """Stock goes on with the file that it has open, whatever stands at the path by then."""
    path = saved(chain(k, 5, 3), tmp_path / end)
    wanted = [value_of(v).tobytes() for v in k.models.load_model(path).weights]
    other = saved(fill(chain(k, 5, 3), seed=7), tmp_path / f"other{end}")

    class Replacing(k.layers.Dense):
        @classmethod
        def from_config(cls, config):
            shutil.copy(other, tmp_path / "z")
            (tmp_path / "z").replace(path)
            return super().from_config(config)

    with k.utils.custom_object_scope({"Dense": Replacing}), accelerated() as calls:
        model = k.models.load_model(path, custom_objects={"Dense": Replacing})
    replaced_meanwhile = any("replaced while the model was built" in call.getMessage() for call in calls)
    assert replaced_meanwhile == (Path(path).read_bytes() == Path(other).read_bytes())
    assert [value_of(v).tobytes() for v in model.weights] == wanted


@pytest.mark.parametrize("end", [".h5", ".weights.h5"])
@pytest.mark.parametrize("k", LIBRARIES.values(), ids=LIBRARIES)
def test_in_a_graph(k, end, tmp_path):
    """What the library feeds its own session with goes through fastassign."""
    path = saved(fill(chain(k, 5, 3)), tmp_path / end)
    wanted = [value_of(v).tobytes() for v in chain_loaded(k, path).weights]
    with tf.Graph().as_default(), tf.compat.v1.Session().as_default() as session:
        model = chain(k, 5, 3)
        with accelerated(ours=1, stock=0):
            model.load_weights(path)
        assert [session.run(getattr(v, "_value", v)).tobytes() for v in model.weights] == wanted
    tf_keras.backend.clear_session()


def chain_loaded(k, path):
    model = chain(k, 5, 3)
    model.load_weights(path)
    return model


def test_what_nobody_loads_into_a_graph_is_an_error(tmp_path):
    """There the libraries load nothing from Keras 3's files, and say nothing."""
    path = saved(chain(keras, 2), tmp_path / "x.weights.h5")
    with tf.Graph().as_default():
        model = chain(keras, 2)
        for name, error in (("x.weights.h5", fa.NoSession), ("x.weights.json", NotImplementedError)):
            shutil.copy(path, tmp_path / f"y{name}")
            with accelerated(ours=0, stock=0), pytest.raises(error):
                model.load_weights(tmp_path / f"y{name}")


# What fastassign refuses is not handed on


def test_refusals_and_verdicts_are_raised(tmp_path):
    path = saved(chain(tf_keras, 5, 3), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        name = next(iter(file))
        file.move(name, "elsewhere")
        file[name] = h5py.SoftLink("/elsewhere")
    model = chain(tf_keras, 5, 3)
    model.load_weights(path)
    with accelerated(ours=0, stock=0), pytest.raises(fa.Refused):
        model.load_weights(path)
    other = saved(chain(tf_keras, 5, 3), tmp_path / "y.h5")
    with fa.accelerate(options=fa.LoadOptions(max_staging_bytes=1)), pytest.raises(fa.Budget):
        model.load_weights(other)
