"""Part of a file, or a file with other names: `rename`, `include`, `exclude`."""

import dataclasses
import functools

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.errors import Mismatch
from fastassign.matching.selection import Selection, path_below
from support.differential import (
    LIBRARIES,
    assert_untouched,
    differences,
    fill,
    fresh,
    perturb,
    quiet,
    save,
    saved,
    snapshot,
    stock_load,
    write_legacy,
)
from support.models import backbone, chain, compiled, larger, nested, with_own_weights
from support.profiles import cases

BOTH = pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])


@pytest.fixture(params=sorted(LIBRARIES))
def k(request):
    return LIBRARIES[request.param]


def load(model, path, **options):
    arguments = {name: options.pop(name) for name in ("by_name", "skip_mismatch") if name in options}
    return fa.load_weights(model, path, **arguments, options=fa.LoadOptions(**options))


def values(layer):
    return [w.numpy() for w in layer.weights]


def same(one, other):
    return len(values(one)) > 0 and all(map(np.array_equal, values(one), values(other)))


@BOTH
def test_all_but_the_head(k, suffix, tmp_path):
    path = saved(lambda: larger(k, backbone(k), 5), tmp_path / f"x{suffix}")
    source = fill(fresh(lambda: larger(k, backbone(k), 5)))
    model = perturb(fresh(lambda: larger(k, backbone(k), 2)), 0.5)
    with pytest.raises(Mismatch):
        fa.load_weights(model, path)
    for selection in ({"exclude": "head"}, {"exclude": ("h*d",)}, {"include": ["backbone"]},
                      {"include": ("backbone", "head/bias"), "exclude": ("head/*",)}):  # fmt: skip
        perturb(model, 0.5)
        report = load(model, path, **selection)
        assert same(model.get_layer("backbone"), source.get_layer("backbone"))
        assert all(np.all(v == 0.5) for v in values(model.get_layer("head")))
        assert report.assigned == 8 and len(report.skipped) == 2 and "head/kernel" in report.skipped[0]
        assert not report.missing and len(report.unexpected) == 2


@BOTH
@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ({"exclude": "*/bias"}, {"low/kernel", "norm", "high/kernel", "head/kernel"}),
        ({"include": "backbone/*/kernel"}, {"low/kernel", "high/kernel"}),
        ({"include": "backbone/norm"}, {"norm"}),
        ({"include": ("backbone", "head"), "exclude": ("backbone/?o*",)}, {"high", "head"}),
        ({"include": ("*/kernel:0",)}, {"low/kernel", "high/kernel", "head/kernel"}),
    ],
)
def test_patterns(k, suffix, options, loaded, tmp_path):
    def build():
        return larger(k, backbone(k))

    path, source, model = saved(build, tmp_path / f"x{suffix}"), fill(fresh(build)), perturb(fresh(build), 0.5)
    report = load(model, path, **options)
    count = 0
    for mine, theirs in zip(model.weights, source.weights, strict=True):
        layer, role = getattr(mine, "path", mine.name).removesuffix(":0").split("/")[-2:]
        taken = layer in loaded or f"{layer}/{role}" in loaded
        count += taken
        assert np.array_equal(mine.numpy(), theirs.numpy() if taken else np.full(mine.shape, 0.5, "f4")), mine.name
    assert report.assigned == count and len(report.skipped) == len(model.weights) - count


@BOTH
def test_a_backbone_inside_a_larger_model(k, suffix, tmp_path):
    path = saved(lambda: backbone(k), tmp_path / f"x{suffix}")
    source = fill(fresh(lambda: backbone(k)))
    model = perturb(fresh(lambda: larger(k, backbone(k))), 0.5)
    rename = {"": "backbone"} if suffix == ".h5" else {"layers": "layers/sequential/layers"}
    report = load(model, path, include=("backbone",), rename=rename)
    assert report.assigned == 8 and same(model.get_layer("backbone"), source)
    perturb(model, 0.5)
    fa.load_weights(model.get_layer("backbone"), path)
    assert same(model.get_layer("backbone"), source)
    assert all(np.all(v == 0.5) for v in values(model.get_layer("head")))


@BOTH
@pytest.mark.parametrize("frozen", [False, True])
def test_extraction_of_layers(k, suffix, frozen, tmp_path):
    source = fresh(lambda: larger(k, backbone(k)))
    fill(source).get_layer("backbone").get_layer("low").trainable = not frozen
    with quiet():
        path = save(source, tmp_path / f"x{suffix}")
    inner = source.get_layer("backbone")
    whole = perturb(fresh(lambda: backbone(k)), 0.5)
    old, new = ("backbone", "") if suffix == ".h5" else ("layers/sequential/layers", "layers")
    rename = {"layers": None, old: new} if suffix != ".h5" else {old: new}
    assert load(whole, path, rename=rename).assigned == 8 and same(whole, inner)
    one = perturb(fresh(lambda: chain(k, 4, names=["mine"])), 0.5)
    if suffix == ".h5":
        report = load(one, path, rename={"backbone/high": "mine"})
        assert len(report.unexpected) == 8
    else:
        report = load(one, path, rename={"layers": None, "layers/sequential/layers/dense_1": "layers/dense"})
    assert report.assigned == 2 and same(one, inner.get_layer("high"))


@BOTH
def test_a_function_renames(k, suffix, tmp_path):
    path = saved(lambda: chain(k, 4, 4, names=["p", "q"]), tmp_path / f"x{suffix}")
    source = fill(fresh(lambda: chain(k, 4, 4, names=["p", "q"])))
    model = perturb(fresh(lambda: chain(k, 4, names=["r"])), 0.5)
    seen = []

    def rename(path):
        seen.append(path)
        if suffix == ".h5":
            return path.replace("q/", "r/") if path.startswith("q/") else None
        return path.replace("dense_1", "dense") if "dense_1" in path else None

    assert load(model, path, rename=rename).assigned == 2 and same(model, source.layers[1])
    wanted = {".h5": "q/kernel", ".weights.h5": "layers/dense_1/vars/0"}[suffix]
    assert wanted in seen and len(seen) == 4


NAMES = ["a", "b", "c", "d"]


@functools.cache
def permuted(k, suffix, folder):
    path = saved(lambda: chain(k, 4, 4, 4, 4, names=NAMES), folder / f"{k.__name__}{suffix}")
    return path, fresh(lambda: chain(k, 4, 4, 4, 4, names=NAMES)), fresh(lambda: chain(k, 4, 4, 4, 4, names=NAMES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("selection")


@BOTH
@cases(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)), as_function=st.booleans())
def test_a_bijection_is_what_stock_makes_of_the_renamed_file(k, suffix, order, as_function, folder):
    path, ours, stocks = permuted(k, suffix, folder)
    classes = ["dense", "dense_1", "dense_2", "dense_3"]
    names = NAMES if suffix == ".h5" else [f"layers/{name}" for name in classes]
    mapping = {names[i]: names[j] for i, j in enumerate(order)}
    copy = folder / f"copy{suffix}"
    copy.unlink(missing_ok=True)
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        for old in mapping:
            file.move(old, f"{old}-moved")
        for old, new in mapping.items():
            file.move(f"{old}-moved", new)
    by_name = {"by_name": True} if suffix == ".h5" else {}
    perturb(stocks, 0.5)
    assert stock_load(stocks, copy, **by_name).error is None

    def function(where):
        found = (new + where[len(old) :] for old, new in mapping.items() if where.startswith(f"{old}/"))
        return next(found, where)

    load(perturb(ours, 0.25), path, rename=function if as_function else mapping)
    assert differences(snapshot(ours), snapshot(stocks)) == []


@BOTH
@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"exclude": "haed"}, "head"),
        ({"include": ("head", "no_such_thing*")}, "no_such_thing*"),
        ({"rename": {"zzzz": "head"}, "include": "head"}, "there are: "),
        ({"rename": {"layers/dens": "x"}, "include": "head"}, "dens"),
    ],
)
def test_names_that_match_nothing_are_an_error(k, suffix, options, near, tmp_path):
    path = saved(lambda: larger(k, backbone(k)), tmp_path / f"x{suffix}")
    model = fresh(lambda: larger(k, backbone(k)))
    before = snapshot(model)
    with pytest.raises(Mismatch) as raised:
        load(model, path, **options)
    assert near in f"{raised.value} {raised.value.hint}"
    assert_untouched(model, before)


@BOTH
def test_nothing_left_to_load(k, suffix, tmp_path):
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / f"x{suffix}")
    with pytest.raises(Mismatch, match="leave no variable"):
        load(fresh(lambda: chain(k, 4, names="p")), path, exclude="*")


def test_a_selected_layer_has_to_be_in_the_file(k, tmp_path):
    path = saved(lambda: chain(k, 4, 4, names=["dense_3", "q"]), tmp_path / "x.h5")
    model = fresh(lambda: chain(k, 4, 4, names=["dense_4", "q"]))
    before = snapshot(perturb(model, 0.5))
    with pytest.raises(Mismatch, match="not in the file: dense_4") as raised:
        load(model, path, exclude="q")
    assert "'dense_3': 'dense_4'" in raised.value.hint
    assert_untouched(model, before)
    report = load(model, path, exclude="q/bias", by_name=True)
    assert report.assigned == 1 and len(report.missing) == 2 and len(report.skipped) == 2
    assert load(model, path, rename={"dense_3": "dense_4"}).assigned == 4


@BOTH
def test_two_of_the_same_new_name(k, suffix, tmp_path):
    path = saved(lambda: chain(k, 4, 4, names=["p", "q"]), tmp_path / f"x{suffix}")
    rename = {"p": "q"} if suffix == ".h5" else {"layers/dense": "layers/dense_1"}
    with pytest.raises(Mismatch, match="rename turns both"):
        load(fresh(lambda: chain(k, 4, 4, names=["p", "q"])), path, rename=rename)


@BOTH
def test_shapes_count_only_where_selected(k, suffix, tmp_path):
    path = saved(lambda: chain(k, 4, 5, names="pq"), tmp_path / f"x{suffix}")
    model = fresh(lambda: chain(k, 4, 6, names="pq"))
    assert load(model, path, include="p").assigned == 2
    with pytest.raises(Mismatch, match="hape"):
        load(model, path, include="q")
    with pytest.raises(Mismatch, match="hape"):
        load(model, path, include=("p", "q/bias"))


def test_weights_of_one_layer_from_several(k, tmp_path):
    """The weights have to have the names of its variables: there is no order to go by."""
    path = saved(lambda: chain(k, 4, 4, names=["low", "other"]), tmp_path / "x.h5")
    with pytest.raises(Mismatch, match="are not one whole layer of the file") as raised:
        load(fresh(lambda: larger(k, backbone(k))), path, rename={"": "backbone"}, include="backbone")
    assert "backbone/norm/gamma" in str(raised.value)


@BOTH
def test_top_level_weights(k, suffix, tmp_path):
    path = saved(lambda: with_own_weights(k, (2,)), tmp_path / f"x{suffix}")
    for options, assigned in (({"exclude": "dense"}, 1), ({"include": "dense"}, 2)):
        model = perturb(fresh(lambda: with_own_weights(k, (2,))), 0.5)
        assert load(model, path, **options).assigned == assigned
        assert np.all(model.own[0].numpy() == 0.5) == (assigned == 2)


@functools.cache
def self_loading(k):
    class SelfLoading(k.layers.Dense):
        def load_own_variables(self, store):
            self.kernel.assign(store["0"])
            self.bias.assign(store["1"])

    return SelfLoading


def test_a_layer_that_loads_itself_is_taken_as_a_whole(k, tmp_path):
    def build():
        layers = [self_loading(k)(4, name="own"), k.layers.Dense(4, name="plain")]
        return k.Sequential([k.Input((4,)), *layers], name="m")

    path, source = saved(build, tmp_path / "x.weights.h5"), fill(fresh(build))
    model = perturb(fresh(build), 0.5)
    report = load(model, path, exclude="own")
    assert same(model.layers[-1], source.layers[-1]) and report.assigned == 2 and len(report.skipped) == 2
    assert all(np.all(v == 0.5) for v in values(model.get_layer("own")))
    load(model, path, include="own")
    assert same(model.get_layer("own"), source.get_layer("own"))
    with pytest.raises(Mismatch, match="include or exclude all of it, not a part"):
        load(model, path, exclude="own/bias")


def test_a_layer_with_state_but_no_weights(k, tmp_path):
    class Stateful(k.layers.Layer):
        state = 1

        def call(self, x):
            return x

        def save_own_variables(self, store):
            store["state"] = np.array(self.state)

        def load_own_variables(self, store):
            self.state = int(np.array(store["state"]))

    def build():
        layers = [Stateful(name="stateful"), k.layers.Dense(4, name="p")]
        return k.Sequential([k.Input((4,)), *layers], name="m")

    path, model = saved(build, tmp_path / "x.weights.h5"), fresh(build)
    for options, state in (({"exclude": "stateful"}, 5), ({"include": "p"}, 5), ({"include": ("p", "stateful")}, 1)):
        model.get_layer("stateful").state = 5
        assert load(model, path, **options).assigned >= 2
        assert model.get_layer("stateful").state == state


def test_the_optimizer_can_be_left_out(k, tmp_path):
    def build():
        return compiled(k, chain(k, 4, names="p"))

    path = saved(build, tmp_path / "x.weights.h5")
    model = perturb(fresh(build), 0.5)
    report = load(model, path, exclude="optimizer")
    own = model.optimizer.variables
    assert report.assigned >= 2 and all(np.all(v.numpy() == np.array(0.5).astype(v.numpy().dtype)) for v in own)
    assert load(model, path, include="p").assigned == 2


@pytest.mark.parametrize("kind", ["functional", "sequential", "composite"])
def test_frozen_differently(k, kind, tmp_path):
    """Selection and `trainable` together: by name inside the composite layer."""
    model, _, layers = fresh(lambda: nested(k, kind))
    fill(model, 7)
    wanted = [w.numpy() for w in layers[0].weights]
    layers[0].trainable = False
    with quiet():
        save(model, tmp_path / "x.h5")
    layers[0].trainable = True
    report = load(perturb(model, 0.5), tmp_path / "x.h5", exclude=("head", "base/b"))
    assert all(map(np.array_equal, values(layers[0]), wanted)) and report.assigned == 8 and report.repaired


def test_older_layouts_are_converted(tmp_path):
    k = LIBRARIES["tf_keras"]

    def build(name):
        return k.Sequential([k.Input((3, 4)), k.layers.LSTM(3, name=name), k.layers.Dense(4, name="d")], name="m")

    rng = np.random.default_rng(1)
    shapes = {"kernel:0": (4, 12), "recurrent_kernel:0": (3, 12), "bias:0": (24,)}  # as CuDNNLSTM has them
    weights = [(f"old/{name}", rng.normal(size=shape).astype("f4")) for name, shape in shapes.items()]
    path = write_legacy(tmp_path / "x.h5", [("old", weights)], version="2.9.0")
    stock, model = fresh(lambda: build("old")), fresh(lambda: build("new"))
    assert stock_load(stock, path, by_name=True).error is None
    assert load(model, path, rename={"old": "new"}, exclude="d").assigned == 3
    assert same(model.get_layer("new"), stock.get_layer("old"))
    perturb(model, 0.5)
    assert load(model, path, rename={"old": "new"}, include="new/lstm_cell/kernel").assigned == 1
    (ours, *others), (theirs, *_) = model.get_layer("new").weights, stock.get_layer("old").weights
    assert np.array_equal(ours.numpy(), theirs.numpy())
    assert all(np.all(other.numpy() == 0.5) for other in others)


def test_a_loader_keeps_the_selection(k, tmp_path):
    path = saved(lambda: chain(k, 4, 5, names="pq"), tmp_path / "x.weights.h5")
    model = perturb(fresh(lambda: chain(k, 4, 6, names="pq")), 0.5)
    with fa.Loader(model, options=fa.LoadOptions(exclude="q")) as loader:
        assert loader.load(path).assigned == 2
        report = loader.load(path)
    assert report.plan == "kept" and len(report.skipped) == 2
    assert np.all(model.layers[-1].kernel.numpy() == 0.5)


def test_variables_without_a_model(k, tmp_path):
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.h5")
    model = fresh(lambda: chain(k, 4, names="p"))
    with pytest.raises(Mismatch, match="models with layers"):
        load({"p/kernel": model.weights[0]}, path, include="p")


def test_options_are_checked_and_stay_hashable():
    mapping = {"a": "b"}
    options = fa.LoadOptions(rename=mapping, include="x", exclude=["y"])
    mapping["a"] = "c"
    assert (options.rename, options.include, options.exclude) == ({"a": "b"}, ("x",), ("y",))
    assert hash(options) == hash(dataclasses.replace(options)) and options == dataclasses.replace(options)
    for wrong in ({"rename": ["a"]}, {"rename": {"a": 1}}, {"include": (1,)}, {"exclude": ("",)}):
        with pytest.raises(TypeError):
            fa.LoadOptions(**wrong)
    with pytest.raises(TypeError, match="must return a string"):
        Selection(lambda _: 1, (), ()).new_path("a")


@pytest.mark.parametrize(
    ("layer", "weight", "path"),
    [
        ("dense", "dense/kernel:0", "dense/kernel"),
        ("dense", "sequential/dense/kernel", "dense/kernel"),
        ("base", "a/kernel", "base/a/kernel"),
        ("kernel", "kernel", "kernel/kernel"),
        ("a/b", "a/b/kernel:0", "a/b/kernel"),
    ],
)
def test_paths(layer, weight, path):
    assert path_below(layer, weight) == path
