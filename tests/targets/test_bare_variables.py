"""Variables without a model around them: each finds its tensor by name."""

import warnings

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.errors import Unsupported
from support import attacks, differential, faults, models
from support.running import with_source

SHAPE = (4, 5)


def values(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variable(shape=SHAPE, dtype="float32", name=None):
    return tf.Variable(np.zeros(shape), dtype=dtype, name=name)


def holds(made, wanted):
    found = np.asarray((made._value if isinstance(made, keras.Variable) else made).numpy())
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def untouched(*made):
    return not any(np.any(each.numpy()) for each in made)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that no library of Keras wrote."""
    path = tmp_path_factory.mktemp("bare") / "plain.h5"
    with h5py.File(path, "w") as file:
        file["w"] = values(seed=0)
        file["enc/l0/kernel"] = values(seed=1)
        file["enc/l0/bias:0"] = values((5,), seed=2)
        file["enc/l1/kernel"] = values(seed=3)
        file["dec/l0/kernel"] = values(seed=4)
        file["dec/scale"] = np.float64(0.1)
        file["dec/empty"] = values((0, 3))
        file["twice"] = values(seed=5)
        file["deep/twice"] = values(seed=6)
        file.create_dataset("packed", data=values((40, 30), seed=7), chunks=(10, 30), compression="gzip")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tf_keras model, and files of it: weights, whole with optimizer, in the format of Keras 3."""
    folder = tmp_path_factory.mktemp("saved")
    with differential.quiet():
        model = models.compiled(tf_keras, models.functional(tf_keras))
        differential.fill(model)
        model.save_weights(str(folder / "weights.h5"))
        model.save(str(folder / "whole.h5"))
        model.save_weights(str(folder / "x.weights.h5"))
        model.save(str(folder / "whole.keras"))
    return folder, model


# Names.

FOUND = {
    # asked for: the seed of what is found
    "w": 0,
    "/w": 0,
    "w/": 0,
    "w:0": 0,
    "enc/l0/kernel": 1,
    "/enc/l0/kernel": 1,
    "enc/l0/kernel:0": 1,
    "enc/l0/bias:0": 2,
    "enc/l0/bias": 2,
    "bias": 2,
    "bias:0": 2,
    "l0/bias": 2,
    "l1/kernel": 3,
    "l1/kernel:0": 3,
    "dec/l0/kernel": 4,
    # The whole path counts more than an end of another.
    "twice": 5,
    "deep/twice": 6,
}


@pytest.mark.parametrize("name", FOUND)
def test_name(name, path):
    wanted = values((5,) if FOUND[name] == 2 else SHAPE, seed=FOUND[name])
    made = variable(wanted.shape)
    report = fa.load_weights({name: made}, path)
    assert holds(made, wanted)
    assert report.assigned == 1 and report.skipped == () and report.missing == ()


@pytest.mark.parametrize("name", ["kernel", "l0/kernel", "kernel:0", "l0/kernel:0"])
def test_name_that_fits_several(name, path):
    made = variable()
    with pytest.raises(fa.Mismatch, match="tensors of the file have a path that ends so") as caught:
        fa.load_weights({name: made}, path)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "enc/l0/kernel" in text and "dec/l0/kernel" in text
    assert ("enc/l1/kernel" in text) == ("l0" not in name)
    assert caught.value.variable == name and "whole path" in caught.value.hint
    assert caught.value.file == str(path)
    assert untouched(made)


@pytest.mark.parametrize(
    ("name", "near"), [("enc/l0/kernal", "enc/l0/kernel"), ("biass", "bias"), ("enc//l0/kernel", "enc/l0/kernel")]
)
def test_name_that_is_nearly_there(name, near, path):
    made = variable()
    with pytest.raises(fa.Mismatch, match=f"^{name}: no tensor of the file has this name; near: {near}"):
        fa.load_weights({name: made}, path)
    assert untouched(made)


@pytest.mark.parametrize("name", ["enc", "l0", "", "/", "zzzz", "../w"])
def test_name_that_is_not_there(name, path):
    made = variable()
    with pytest.raises(fa.Mismatch, match="no tensor of the file has this name") as caught:
        fa.load_weights({name: made}, path)
    assert caught.value.variable == name and caught.value.file == str(path)
    assert caught.value.hint == f"list the tensors of the file with: fastassign inspect {path}"
    assert untouched(made)


def test_names_are_not_cut_inside_of_a_part(path):
    with pytest.raises(fa.Mismatch, match="no tensor"):
        fa.load_weights({"nel": variable()}, path)


@pytest.mark.parametrize("name", [1, None, b"w", ("w",)])
def test_names_that_are_no_texts(name, path):
    made = variable()
    with pytest.raises(TypeError, match="must be strings"):
        fa.load_weights({"enc/l0/kernel": made, name: variable()}, path)
    assert untouched(made)


@pytest.mark.parametrize("thing", [3, None, np.zeros(SHAPE), tf.zeros(SHAPE), keras.layers.Dense(3), "w"])
@pytest.mark.parametrize("make", [lambda x, v: {"enc/l0/kernel": v, "w": x}, lambda x, v: [v, x], lambda x, v: (x, v)])
def test_what_is_no_variable(make, thing, path):
    made = variable(name="enc/l0/kernel")
    with pytest.raises(TypeError, match="is not a variable"):
        fa.load_weights(make(thing, made), path)
    assert untouched(made)


# Sequences: variables by their own names.


@pytest.mark.parametrize("kind", [list, tuple])
def test_sequence(kind, path):
    made = kind([variable(name="w"), variable(name="enc/l0/kernel"), variable((5,), name="l0/bias")])
    report = fa.load_weights(made, path)
    assert report.assigned == 3
    assert all(
        holds(each, wanted) for each, wanted in zip(made, (values(), values(seed=1), values((5,), seed=2)), strict=True)
    )


def test_sequence_of_keras_variables(path):
    made = keras.Variable(np.zeros(SHAPE), name="w", dtype="float32")
    fa.load_weights([made], path)
    assert made.path == "w" and holds(made, values())


def test_sequence_with_a_name_twice(path):
    made = [variable(name="w"), variable(name="w")]
    with pytest.raises(fa.Mismatch, match="two of the variables have the name 'w:0'") as caught:
        fa.load_weights(made, path)
    assert "mapping" in caught.value.hint
    assert untouched(*made)


def test_sequence_with_a_variable_twice(path):
    """It has one name, so it counts as two variables of that name."""
    made = variable(name="w")
    with pytest.raises(fa.Mismatch, match="two of the variables"):
        fa.load_weights([made, made], path)
    assert untouched(made)


def test_weights_of_a_model_as_a_list(saved):
    folder, model = saved
    copy = differential.perturb(models.functional(tf_keras), 0.5)
    names = [weight.name.removesuffix(":0") for weight in model.weights]
    mapping = dict(zip(names, copy.weights, strict=True))
    for file in ("weights.h5", "whole.h5"):
        differential.perturb(copy, 0.5)
        assert fa.load_weights(mapping, folder / file).assigned == len(names)
        assert [w.numpy().tobytes() for w in copy.weights] == [w.numpy().tobytes() for w in model.weights]


# Mappings.


@pytest.mark.parametrize("empty", [{}, [], ()])
def test_nothing(empty, path):
    with pytest.warns(UserWarning, match="no weights"):
        report = fa.load_weights(empty, path)
    assert report.assigned == 0


def test_one_variable_under_two_names(path):
    """The later name gets it, and the tensor of the first is reported as unexpected."""
    made = variable()
    report = fa.load_weights({"w": made, "l1/kernel": made}, path)
    assert report.assigned == 1 and "w" in report.unexpected
    assert holds(made, values(seed=3))


def test_one_tensor_for_two_variables(path):
    one, two = variable(), keras.Variable(np.zeros(SHAPE), dtype="float32")
    assert fa.load_weights({"w": one, "/w": two}, path).assigned == 2
    assert holds(one, values()) and holds(two, values())


def test_variables_of_every_kind(path):
    layer = tf_keras.layers.Dense(5, dtype=tf_keras.mixed_precision.Policy("mixed_float16"))
    layer.build((None, 4))
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = tf.Variable(np.zeros(SHAPE, np.float32))
    report = fa.load_weights(
        {"w": layer.kernel, "l1/kernel": mirrored, "dec/scale": variable(()), "empty": variable((0, 3))}, path
    )
    assert holds(layer.kernel._variable, values())
    assert all(holds(part, values(seed=3)) for part in mirrored.values)
    assert report.assigned == 4 and report.cast == ("Variable:0: <f8 to float32",)


def test_compressed_tensors(path):
    made = variable((40, 30))
    fa.load_weights({"packed": made}, path)
    assert holds(made, values((40, 30), seed=7))


def test_open_shapes(path):
    rows = tf.Variable(np.zeros((1, 5), np.float32), shape=(None, 5))
    free = tf.Variable(0.0, shape=tf.TensorShape(None))
    fa.load_weights({"w": rows, "l1/kernel": free}, path)
    assert holds(rows, values()) and holds(free, values(seed=3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32", "complex64"])
def test_casts_by_numpy(dtype, path):
    made = variable(dtype=dtype)
    report = fa.load_weights({"w": made}, path)
    assert holds(made, values().astype(tf.as_dtype(dtype).as_numpy_dtype))
    assert len(report.cast) == 1


def test_variables_of_texts(path):
    made, good = tf.Variable(np.full(SHAPE, "x")), variable()
    with pytest.raises(Unsupported, match="string") as caught:
        fa.load_weights({"l1/kernel": good, "w": made}, path)
    assert caught.value.file == str(path)
    assert untouched(good) and (made.numpy() == b"x").all()


# What does not fit.


def test_wrong_shape(path):
    made, good = variable((5, 4)), variable()
    with pytest.raises(fa.Mismatch) as caught:
        fa.load_weights({"l1/kernel": good, "w": made}, path)
    assert str(caught.value) == "w: the variable has shape (5, 4), and w in the file has shape (4, 5)"
    assert (caught.value.tensor, caught.value.variable, caught.value.file) == ("w", "w", str(path))
    assert untouched(made, good)


def test_wrong_open_shape(path):
    made = tf.Variable(np.zeros((1, 4), np.float32), shape=(None, 4))
    with pytest.raises(fa.Mismatch, match=r"has shape \(None, 4\), and w in the file has shape \(4, 5\)"):
        fa.load_weights({"w": made}, path)
    assert untouched(made)


def test_several_problems_are_listed(path):
    made = {"w": variable((5, 4)), "kernel": variable(), "zzz": variable(), "l1/kernel": variable()}
    with pytest.raises(fa.Mismatch) as caught:
        fa.load_weights(made, path)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 of 4 variables do not fit:"
    assert [line.partition(":")[0] for line in lines] == ["w", "kernel", "zzz"]
    assert caught.value.variable == "w" and caught.value.file == str(path)
    assert untouched(*made.values())


def test_skipped_mismatch(path):
    made = {"w": variable((5, 4)), "kernel": variable(), "zzz": variable(), "l1/kernel": variable()}
    report = fa.load_weights(made, path, skip_mismatch=True)
    assert report.assigned == 1 and holds(made["l1/kernel"], values(seed=3))
    assert [text.partition(":")[0] for text in report.skipped] == ["w", "kernel", "zzz"]
    assert untouched(made["w"], made["kernel"], made["zzz"])


def test_skipped_mismatch_of_all(path):
    made = variable((5, 4))
    report = fa.load_weights({"w": made}, path, skip_mismatch=True)
    assert report.assigned == 0 and len(report.skipped) == 1 and untouched(made)


@pytest.mark.parametrize("arguments", [{"by_name": True}, {"objects_to_skip": []}, {"objects_to_skip": [variable()]}])
def test_arguments_for_models_are_refused(arguments, path):
    made = variable()
    with pytest.raises(fa.Mismatch, match=r"by_name.*objects_to_skip"):
        fa.load_weights({"w": made}, path, **arguments)
    assert untouched(made)


@pytest.mark.parametrize("thing", ["w", 5, None, iter([]), {1, 2}, tf.Module(), np.zeros(3), variable()])
def test_what_is_no_model(thing, path):
    with pytest.raises((TypeError, NotImplementedError)):
        fa.load_weights(thing, path)


def test_nothing_fits(path):
    with pytest.raises(fa.Mismatch):
        fa.load_weights({"a": variable(), "b": variable()}, path)


def test_tensor_that_the_policy_refuses(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = values()
    with h5py.File(path, "w") as file:
        file["good"] = values(seed=1)
        file["group/w"] = h5py.ExternalLink("other.h5", "w")
    made, good = variable(), variable()
    with pytest.raises(fa.Refused):
        fa.load_weights({"good": good, "group/w": made}, path)
    assert untouched(made, good)
    fa.load_weights({"good": good}, path)
    assert holds(good, values(seed=1))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        fa.load_weights({"w": variable()}, tmp_path / "none.h5")


# Files of Keras.


@pytest.mark.parametrize("file", ["weights.h5", "whole.h5"])
@pytest.mark.parametrize("name", ["first/kernel", "first/kernel:0", "first/first/kernel:0", "first/first/kernel"])
def test_legacy_names(name, file, saved):
    folder, model = saved
    made = variable()
    fa.load_weights({name: made}, folder / file)
    assert holds(made, model.get_layer("first").kernel.numpy())


@pytest.mark.parametrize("file", ["weights.h5", "whole.h5"])
def test_slots_of_the_optimizer_do_not_make_names_ambiguous(file, saved):
    folder, model = saved
    made = [variable(shape, name=name) for name, shape in (("norm/gamma", (5,)), ("second/bias", (3,)))]
    report = fa.load_weights(made, folder / file)
    assert holds(made[0], model.get_layer("norm").gamma.numpy())
    assert holds(made[1], model.get_layer("second").bias.numpy())
    assert report.assigned == 2
    # Nor are they unexpected weights.
    left = {key.removeprefix("model_weights/").partition("/")[2] for key in report.unexpected}
    assert left == {weight.name for weight in model.weights} - {"norm/gamma:0", "second/bias:0"}


def test_slots_of_the_optimizer_by_their_paths(saved):
    folder, model = saved
    slot = next(v for v in model.optimizer.variables if tuple(v.shape) == SHAPE)
    catalog = fa.inspect(folder / "whole.h5")
    keys = [key for key in catalog if key.startswith("optimizer_weights") and catalog[key].record.shape == SHAPE]
    assert len(keys) == 2
    made = {key: variable() for key in keys}
    fa.load_weights(made, folder / "whole.h5")
    assert any(holds(each, slot.numpy()) for each in made.values())


@pytest.mark.parametrize("file", ["x.weights.h5", "whole.keras"])
def test_keras_3_paths(file, saved):
    folder, model = saved
    catalog = fa.inspect(folder / file)
    kernel = model.get_layer("first").kernel.numpy()
    key = next(key for key in catalog if catalog[key].read().tobytes() == kernel.tobytes())
    assert key.endswith("dense/vars/0") and not key.startswith("optimizer")
    made = variable()
    assert fa.load_weights({key: made}, folder / file).assigned == 1
    assert holds(made, kernel)


def test_keras_3_endings(saved):
    """Their names are numbers: a path without a counter has a unique end only with its layer."""
    folder, _ = saved
    with pytest.raises(fa.Mismatch, match="have a path that ends so"):
        fa.load_weights({"vars/0": variable()}, folder / "x.weights.h5")
    with pytest.raises(fa.Mismatch, match="no tensor of the file has this name"):
        fa.load_weights([variable(name="first/kernel")], folder / "x.weights.h5")


def test_name_of_the_file_does_not_matter(path, tmp_path):
    for name in ("x.weights.h5", "x.keras", "x", "x.weights.json", "x.hdf5"):
        copy = tmp_path / name
        copy.write_bytes(path.read_bytes())
        made = variable()
        fa.load_weights({"w": made}, copy)
        assert holds(made, values())


# As for models: plans, progress, loaders, faults.


def test_plan_and_report(path):
    made = {"w": variable(name="one"), "dec/scale": variable((), name="two")}
    plan = fa.plan(made, path)
    assert {row["variable"] for row in plan.to_dict()["tensors"]} == {"one:0", "two:0"}
    assert untouched(*made.values())
    events = []
    report = plan.execute(events.append)
    assert report.nbytes == 88 == events[-1].done_bytes and report.cast == ("two:0: <f8 to float32",)
    assert len(report.unexpected) == 8 and report.missing == ()
    assert str(report) and report.to_dict()["file"] == str(path)


def test_loader(path, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(path) as old, h5py.File(other, "w") as new:
        old.copy(old["w"], new)
        new["w"][...] = values(seed=9)
    made = variable()
    with fa.Loader({"w": made}) as loader:
        for file, seed in ((path, 0), (other, 9), (path, 0)):
            loader.load(file)
            assert holds(made, values(seed=seed))


def test_budget(path):
    made, small = variable(), variable(())
    with pytest.raises(fa.Budget) as caught:
        fa.load_weights({"dec/scale": small, "w": made}, path, options=fa.LoadOptions(max_staging_bytes=50))
    assert caught.value.tensor == "w"
    assert untouched(made, small)


@pytest.mark.parametrize("atomic", [False, True])
def test_storage_that_ends(atomic, tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for i in range(6):
            file[f"v{i}"] = values((100, 20), seed=i)
    attacks.settle(path)
    made = {f"v{i}": variable((100, 20), name=f"v{i}") for i in range(6)}
    small = fa.LoadOptions(window_bytes=8192, read_bytes=4096, max_staging_bytes=10_000)
    plan = fa.plan(made, path, atomic=atomic, options=None if atomic else small)
    last = max(r.extents[-1].offset for r in fa.inspect(path).contents.records.values())
    with pytest.raises(fa.Truncated) as caught:
        with_source(plan, faults.ends_at(last)).execute()
    named = caught.value.assigned
    assert (named == ()) == atomic
    for i, each in enumerate(made.values()):
        assert holds(each, values((100, 20), seed=i)) if each.name in named else untouched(each)
    fa.load_weights(made, path)
    assert all(holds(each, values((100, 20), seed=i)) for i, each in enumerate(made.values()))


def test_inside_of_a_stateless_scope(path):
    made = keras.Variable(np.zeros(SHAPE), dtype="float32")
    with keras.StatelessScope() as scope:
        fa.load_weights({"w": made}, path)
        assert np.asarray(scope.get_current_value(made)).tobytes() == values().tobytes()
    assert untouched(made)


def test_inside_a_traced_function(path):
    made = variable()

    @tf.function(autograph=False)
    def step():
        fa.load_weights({"w": made}, path)
        return tf.constant(1)

    step()
    assert holds(made, values())
    made.assign(tf.zeros(SHAPE))
    step()
    assert holds(made, values())


def test_no_warning_of_ours(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fa.load_weights({"w": variable(), "l1/kernel": variable(dtype="float16")}, path)


# Sessions; more of them in test_graph.py.


@pytest.mark.parametrize("use_resource", [True, False])
@pytest.mark.parametrize("file", ["weights.h5", "whole.h5"])
def test_graph_variables_named_as_tf_keras_saves_them(file, use_resource, saved):
    folder, model = saved
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("first", use_resource=use_resource):
            made = [v1.get_variable("kernel", SHAPE), v1.get_variable("bias", (5,))]
        report = fa.load_weights(made, folder / file, session=session)
        assert report.routes == {"feed": 2}
        found = session.run([each.value() for each in made])
    layer = model.get_layer("first")
    assert [array.tobytes() for array in found] == [layer.kernel.numpy().tobytes(), layer.bias.numpy().tobytes()]


def test_variables_of_two_graphs(path):
    v1 = tf.compat.v1
    made = []
    for name in ("w", "twice"):
        with tf.Graph().as_default():
            made.append(v1.get_variable(name, SHAPE))
    with pytest.raises(fa.Mismatch, match="different graphs"):
        fa.load_weights(made, path)


def test_numbers_that_share_no_memory(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = np.float32(3.5), np.arange(4, dtype="f4")
    variables = {"a": tf.Variable(0.0), "b": tf.Variable(tf.zeros(4))}
    report = fa.load_weights(variables, path, options=fa.LoadOptions(arena_bytes=0))
    assert report.routes == {"owned": 2}
    assert variables["a"].numpy() == 3.5
    assert variables["b"].numpy().tolist() == [0, 1, 2, 3]
