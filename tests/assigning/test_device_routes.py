"""Values that go to a device by our own copies: bit for bit what stock puts there, by every route, cut and dtype."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.plan import Plan
from support import differential as d
from support import models, simulated
from support.options import load_options

SLOT = 16_384  # the least
ROUTES = ["auto", "direct", "fused"]
CUTS = ["split", "function", "scatter"]

# Elements of float32: around a row of 64 bytes, around what fits a slot beside a table, around a slot, and pieces.
SIZES = (1, 3, 15, 16, 17, 31, 32, 33, 500, 4031, 4032, 4033, 4063, 4064, 4065, 4080, 4095, 4096, 4097, 8192, 16_400)
SHAPES = [(), (0,), (3, 0), (1, 1), (5, 7), (2, 3, 5), (16, 16), (7, 5), (16, 16), *((size,) for size in SIZES)]

BOTH = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
BY_ROUTE = pytest.mark.parametrize(
    ("route", "cut"), [("auto", "auto"), ("direct", "auto"), *(("fused", cut) for cut in CUTS)]
)


def on_device(build, device="CPU:1"):
    """Return what builds a model on a device."""

    def built():
        with tf.device(device):
            return build()

    return built


def tiny(**how):
    """Return options under which a small model is large: the smallest slots."""
    return load_options(**{"slot_bytes": SLOT, "device_window_bytes": 4 * SLOT, "index_cache": False, **how})


def by_options(options, **arguments):
    """Return a loader for ``differential.check``."""

    def load(model, path, **more):
        return d.observe(lambda: fa.load_weights(model, path, options=options, **arguments, **more))

    return load


def of_shapes(k, dtype="float32"):
    return models.holder(k, *((shape, dtype) for shape in SHAPES))


def holding_floats(path):
    """Return the floating-point datasets of a file, by name."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def put_bits(path, seed=0):
    """Replace all float32 values of a file by bit patterns of all kinds: NaNs, denormals, infinities."""
    rng = np.random.default_rng(seed)
    kinds = np.array([0x7F800001, 0xFFC12345, 0x7FC00000, 0x7FFFFFFF, 0xFF800000, 0x7F800000, 1, 0x807FFFFF, 0x80000000,
                      0x7F7FFFFF, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x38000001, 0x3F808000, 0x3F818000],
                     dtype=np.uint32)  # fmt: skip
    with h5py.File(path, "r+") as file:
        for name, value in holding_floats(path).items():
            if value.size:
                bits = rng.integers(0, 1 << 32, value.size, dtype=np.uint32)
                special = rng.random(value.size) < 0.5
                bits[special] = rng.choice(kinds, special.sum())
                file[name][...] = bits.view(np.float32).reshape(value.shape)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files, made once."""
    folder = tmp_path_factory.mktemp("files")
    return d.cache(lambda k, name: put_bits(d.saved(lambda: of_shapes(k), folder / f"{k.__name__}.{name}")))


@pytest.fixture(scope="module")
def pair():
    """Two models on a device, made once for each library and dtype."""
    return d.cache(lambda k, dtype: d.twins(on_device(lambda: of_shapes(k, dtype))))


def loaded(model):
    """Return what ``differential.snapshot`` does, of what files hold: no seeds that no layer loads."""
    return [row for row in d.snapshot(model) if "seed" not in row[0] and row[0] != "Variable:0"]


def cuts_of(plan):
    return {batch.cut for batch in plan.schedule.batches if batch.lane and batch.route == "fused"}


class TestShapes:
    """A model of many shapes: every size around a limit."""

    @BOTH
    @BY_ROUTE
    @pytest.mark.parametrize("name", ["weights.h5", "h5"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_every_route_is_exact(self, driver, files, pair, k, route, cut, name, dtype):
        path, twins = files(k, name), pair(k, dtype)
        options = tiny(route=route, cut=cut)
        found = d.check(twins, path, loader=by_options(options))
        routes = found.report.routes
        plan = fa.plan(twins[1], path, options=options)
        filled = sum(0 not in shape for shape in SHAPES)
        assert routes.get("fused", 0) + routes["direct"] == filled
        assert bool(routes.get("fused")) == (route != "direct")
        assert not (cuts_of(plan) if route == "direct" else cuts_of(plan) - ({cut} if cut != "auto" else set(CUTS)))
        assert bool(driver.launches) == (dtype != "float32" or "scatter" in cuts_of(plan))
        assert len(found.report.cast) == (0 if dtype == "float32" else len(SHAPES))
        assert not found.report.fallbacks

    @BY_ROUTE
    @pytest.mark.parametrize("slot_bytes", [20_000, 1 << 20])
    @pytest.mark.parametrize("gap_bytes", [0, 1 << 16])
    def test_any_slots_and_gaps(self, driver, files, pair, route, cut, slot_bytes, gap_bytes):
        options = tiny(route=route, cut=cut, slot_bytes=slot_bytes, gap_bytes=gap_bytes, device_window_bytes=50_000)
        d.check(pair(keras, "float32"), files(keras, "weights.h5"), loader=by_options(options))
        assert driver.copies

    @pytest.mark.parametrize("fused_bytes", [1, 64, 128, 192, 256, 2000, 16_384, 1 << 20])
    def test_fused_bytes_bounds_what_shares_a_copy(self, driver, files, pair, fused_bytes):
        options = tiny(fused_bytes=fused_bytes, slot_bytes=1 << 16)
        plan = fa.plan(pair(keras, "float32")[1], files(keras, "weights.h5"), options=options)
        largest = max((row[5] for row in plan.rows() if row[3].startswith("fused")), default=0)
        assert largest <= fused_bytes
        d.check(pair(keras, "float32"), files(keras, "weights.h5"), loader=by_options(options))

    @BOTH
    def test_past_the_page_cache(self, driver, files, pair, k):
        for dtype in ("float32", "bfloat16"):
            options = tiny(route="direct", direct_io=True)
            report = d.check(pair(k, dtype), files(k, "weights.h5"), loader=by_options(options)).report
            assert report.routes["direct"] == sum(0 not in shape for shape in SHAPES)

    def test_no_value_larger_than_a_slot_is_copied_at_once(self, driver, files, pair):
        d.check(pair(keras, "float32"), files(keras, "weights.h5"), loader=by_options(tiny(route="direct")))
        assert max(op.nbytes for op in driver.copies) == SLOT

    def test_without_kernels_nothing_is_launched_and_casts_go_by_the_library(self, monkeypatch, files, pair):
        with simulated.simulated(monkeypatch, kernels=False) as driver:
            found = d.check(pair(keras, "bfloat16"), files(keras, "weights.h5"), loader=by_options(tiny()))
            assert found.report.routes == {"assign": len(SHAPES)}
            (text,) = found.report.fallbacks
            assert "simulated without" in text
            assert "cast on the host" in text
            exact = d.check(pair(keras, "float32"), files(keras, "weights.h5"), loader=by_options(tiny()))
            assert exact.report.routes["fused"] > 10
            assert not exact.report.fallbacks
            assert not driver.launches


class TestDtypes:
    @BOTH
    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "uint8", "int64", "uint64"])
    def test_a_dtype_that_is_the_files(self, driver, tmp_path, k, route, dtype):
        def build():
            shapes = [(), (5, 7), (33,), (64,), (300,)]
            return models.holder(k, *((shape, dtype) for shape in shapes), ((80, 80), "float32"), ((3,), "float32"))

        path = d.saved(build, tmp_path / "x.weights.h5")
        if (k, dtype) == (tf_keras, "bfloat16"):  # stock raises: it can't read what it saved
            twin = d.fill(d.fresh(build))
            model = d.perturb(d.fresh(on_device(build)), 0.5)
            report = fa.load_weights(model, path, options=tiny(route=route))
            assert d.differences(loaded(model), loaded(twin)) == []
        else:
            report = d.check(on_device(build), path, loader=by_options(tiny(route=route))).report
        # TensorFlow has no kernels to cut tensors of integers up on a GPU.
        floats = 0 if route == "direct" else 1 if "int" in dtype else 6
        assert (report.routes.get("fused", 0), report.routes["direct"]) == (floats, 7 - floats)

    @BOTH
    @pytest.mark.parametrize("dtype", ["bool", "int32", "uint32", "int16", "uint16", "complex64"])
    def test_what_a_device_does_not_hold_goes_through_the_host(self, driver, tmp_path, k, dtype):
        def build():
            return models.holder(k, ((5, 7), dtype), ((33,), dtype), ((16,), "float32"))

        path = d.saved(build, tmp_path / "x.weights.h5")
        found = d.check(on_device(build), path, loader=by_options(tiny()))
        assert found.report.routes == {"arena": 2, "fused": 1}

    @BOTH
    @pytest.mark.parametrize("stored", ["float16", "float64", ">f4", "int32"])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
    def test_other_casts_go_by_the_library(self, driver, tmp_path, k, stored, dtype):
        path = d.saved(lambda: models.holder(k, ((5, 7), "float32"), ((16,), "float32")), tmp_path / "x.weights.h5")
        arrays = holding_floats(path)
        with h5py.File(path, "r+") as file:
            for name, value in arrays.items():
                del file[name]
                file[name] = value.astype(stored)
        build = on_device(lambda: models.holder(k, ((5, 7), dtype), ((16,), dtype)))
        if (k, stored, dtype) == (tf_keras, "float16", "bfloat16"):  # stock raises: numpy knows no such cast
            model = d.fresh(build)
            report = fa.load_weights(model, path, options=tiny())
            half = {value.shape: value.astype(stored).astype(tf.bfloat16.as_numpy_dtype) for value in arrays.values()}
            assert all(d.value_of(v).tobytes() == half[tuple(v.shape)].tobytes() for v in model.weights)
        else:
            report = d.check(build, path, loader=by_options(tiny())).report
        assert report.routes == ({"fused": 2} if stored == dtype else {"assign": 2})

    @pytest.mark.parametrize("route", ROUTES)
    def test_several_dtypes_in_one_model(self, driver, tmp_path, route):
        dtypes = ("float32", "bfloat16", "float16", "float64", "int64", "uint8", "int32", "bool")

        def build(rename=None):
            return models.holder(
                keras, *(((n, 3), (rename or {}).get(dtype, dtype)) for n in (5, 50, 2000) for dtype in dtypes)
            )

        path = d.saved(build, tmp_path / "x.weights.h5")
        d.check(on_device(build), path, loader=by_options(tiny(route=route)))
        path = d.saved(lambda: build({"bfloat16": "float32", "float16": "float32"}), tmp_path / "y.weights.h5")
        put_bits32(path)
        found = d.check(on_device(build), path, loader=by_options(tiny(route=route)))
        assert len(found.report.cast) == 6


def put_bits32(path):
    """As ``put_bits``, in files that hold other dtypes too."""
    rng = np.random.default_rng(5)
    with h5py.File(path, "r+") as file:
        for name, value in holding_floats(path).items():
            if value.dtype == np.float32:
                file[name][...] = rng.integers(0, 1 << 32, value.size, np.uint32).view("f4").reshape(value.shape)


class TestFiles:
    @BOTH
    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("name", ["x.weights.h5", "x.keras", "x.h5", "whole.h5"])
    def test_every_layout(self, driver, tmp_path, k, route, name):
        path = d.saved(lambda: models.functional(k), tmp_path / name)
        found = d.check(d.twins_of(_kept(models.functional), k), path, loader=by_options(tiny(route=route)))
        assert set(found.report.routes) == {"direct" if route == "direct" else "fused"}

    @BOTH
    def test_the_optimizer_comes_too(self, driver, tmp_path, k):
        def build():
            return models.compiled(k, models.functional(k))

        path = d.saved(build, tmp_path / "x.weights.h5")
        found = d.check(on_device(build), path, loader=by_options(tiny()))
        assert found.report.routes["fused"] > 20

    @BOTH
    @pytest.mark.parametrize(
        "how", [{"compression": "gzip"}, {"shuffle": True, "compression": "gzip"}, {"chunks": True}]
    )
    def test_compressed_values_are_decoded_on_the_host(self, driver, tmp_path, k, how):
        path = d.saved(lambda: models.functional(k), tmp_path / "x.weights.h5")
        with h5py.File(path, "r+") as file:
            for name, value in holding_floats(path).items():
                if value.ndim == 2:
                    del file[name]
                    file.create_dataset(name, data=value, **how)
        found = d.check(d.twins_of(_kept(models.functional), k), path, loader=by_options(tiny()))
        assert found.report.routes["fused"] >= 6
        assert found.report.assigned == found.report.routes["fused"] + 3

    @BOTH
    def test_gaps_between_values_are_read_over(self, driver, tmp_path, k):
        build = on_device(lambda: of_shapes(k))
        path = d.saved(lambda: of_shapes(k), tmp_path / "x.weights.h5")
        with h5py.File(path, "r+") as file:
            # Every other value moves to the end of the file, behind something that nobody wants.
            for number, (name, value) in enumerate(holding_floats(path).items()):
                if number % 2:
                    del file[name]
                    file[f"filler{number}"] = np.full(10, 255, "u1")
                    file[name] = value
        for route in ROUTES:
            d.check(build, path, loader=by_options(tiny(route=route, gap_bytes=1 << 16)))


@d.cache
def _kept(make):
    def made(k):
        with tf.device("CPU:1"):
            return make(k)

    return made


class TestVariables:
    @BY_ROUTE
    def test_a_variable_that_was_looked_up_in(self, driver, tmp_path, route, cut):
        """A gather marks its variable so that every assignment is copied; large ones lose the mark."""

        def build():
            inputs = keras.Input((3,), dtype="int32")
            outputs = [keras.layers.Embedding(4200, 64)(inputs), keras.layers.Embedding(10, 5)(inputs)]
            return keras.Model(inputs, outputs)

        path = d.saved(build, tmp_path / "x.weights.h5")
        twins = d.twins(on_device(build))
        for model in twins:
            for variable in model.weights:
                tf.gather(variable.value, [1, 2])
        options = load_options(route=route, cut=cut, fused_bytes=4 << 20)
        found = d.check(twins, path, loader=by_options(options))
        assert set(found.report.routes) == {"direct" if route == "direct" else "fused"}
        tf.gather(twins[1].weights[0].value, [1, 2])
        d.check(twins, path, loader=by_options(options))

    @BOTH
    @BY_ROUTE
    def test_variables_without_a_value_yet(self, driver, tmp_path, k, route, cut):
        path = d.saved(lambda: models.functional(k), tmp_path / "x.weights.h5")
        stock = d.fresh(on_device(lambda: models.functional(k)))
        stock.load_weights(path)
        with fa.deferred_init():
            ours = d.fresh(on_device(lambda: models.functional(k)))
        report = fa.load_weights(ours, path, options=tiny(route=route, cut=cut))
        assert set(report.routes) == {"direct" if route == "direct" else "fused"}
        assert d.differences(loaded(ours), loaded(stock)) == []

    @BOTH
    def test_load_model(self, driver, tmp_path, k):
        path = d.saved(lambda: models.compiled(k, models.functional(k)), tmp_path / "x.keras")
        reports = []
        how = tiny(library="keras" if k is keras else "tf_keras", on_report=reports.append)
        with tf.device("CPU:1"):
            stock = d.fresh(lambda: k.models.load_model(path))
            ours = d.fresh(lambda: fa.load_model(path, options=how))
        assert d.differences(loaded(ours), loaded(stock)) == []
        assert reports[0].routes["fused"] > 10

    @BY_ROUTE
    def test_training_changes_no_neighbour(self, driver, tmp_path, route, cut):
        """Values that are pieces of one slab are updated by an optimizer, each on its own."""

        def build():
            model = keras.Sequential(
                [keras.Input((4,)), *(keras.layers.Dense(16, name=f"d{i}", trainable=i % 2 == 0) for i in range(6))]
            )
            model.compile(keras.optimizers.SGD(0.5), "mse")
            return model

        path = d.saved(build, tmp_path / "x.weights.h5")
        stock, ours = d.twins(on_device(build))
        found = d.check((stock, ours), path, loader=by_options(tiny(route=route, cut=cut)))
        assert set(found.report.routes) <= {"fused", "direct", "arena"}
        before = {row[0]: row[3] for row in d.snapshot(ours)}
        x = np.ones((2, 4), "f4")
        y = np.ones((2, 16), "f4")
        for model in (stock, ours):
            with tf.device("CPU:1"):
                trained = model.trainable_variables
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum((model(x) - y) ** 2)
                model.optimizer.apply(tape.gradient(loss, [v.value for v in trained]), trained)
        changed = {row[0] for row in d.snapshot(ours) if row[3] != before[row[0]]}
        assert changed >= {v.path for v in trained}
        assert not changed & {v.path for v in ours.non_trainable_variables if "seed" not in v.path}
        assert d.differences(d.snapshot(ours), d.snapshot(stock)) == []

    @BOTH
    def test_a_mapping_of_plain_variables(self, driver, tmp_path, k):
        path = d.saved(lambda: models.functional(k), tmp_path / "x.weights.h5")
        arrays = holding_floats(path)
        with tf.device("CPU:1"):
            variables = {name: tf.Variable(tf.zeros(value.shape)) for name, value in arrays.items()}
        report = fa.load_weights(variables, path, options=tiny())
        assert report.routes == {"fused": len(arrays)}
        assert all(variables[name].numpy().tobytes() == value.tobytes() for name, value in arrays.items())


class TestHooks:
    def test_layers_that_load_themselves(self, driver, tmp_path):
        @keras.saving.register_keras_serializable("fastassign-tests")
        class Doubling(keras.layers.Dense):
            def load_own_variables(self, store):
                self.kernel.assign(2 * store["0"][()])
                self.bias.assign(store["1"][()])

        def build():
            return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), Doubling(6), keras.layers.Dense(3)])

        path = d.saved(build, tmp_path / "x.weights.h5")
        found = d.check(on_device(build), path, loader=by_options(tiny()))
        assert found.report.routes == {"hook": 2, "fused": 4}

    @BOTH
    @pytest.mark.parametrize("route", ROUTES)
    def test_what_does_not_fit_is_skipped(self, driver, tmp_path, k, route):
        path = d.saved(lambda: models.chain(k, 5, 5, 3, names=["a", "b", "c"]), tmp_path / "x.weights.h5")
        build = on_device(lambda: models.chain(k, 5, 4, 3, names=["a", "b", "c"]))
        found = d.check(build, path, loader=by_options(tiny(route=route)), skip_mismatch=True)
        assert found.report.skipped
        assert set(found.report.routes) == {"direct" if route == "direct" else "fused"}
        assert d.check(build, path, loader=by_options(tiny(route=route))).ours.error is not None


class TestAtomic:
    @BY_ROUTE
    def test_an_atomic_load_is_exact(self, driver, files, pair, route, cut):
        options = tiny(route=route, cut=cut)
        d.check(pair(keras, "float32"), files(keras, "weights.h5"), loader=by_options(options, atomic=True))
        d.check(pair(keras, "bfloat16"), files(keras, "weights.h5"), loader=by_options(options, atomic=True))

    @BY_ROUTE
    def test_values_are_taken_back(self, driver, files, pair, route, cut):
        model = d.fill(pair(keras, "float32")[1], seed=3)
        before, seen = d.snapshot(model), []

        def progress(event):
            seen.append(event.variable)
            if len([name for name in seen if name]) == 2:
                raise KeyboardInterrupt

        options = tiny(route=route, cut=cut)
        with pytest.raises(KeyboardInterrupt) as caught:
            fa.load_weights(model, files(keras, "weights.h5"), atomic=True, options=options, progress=progress)
        assert caught.value.assigned == ()
        d.assert_untouched(model, before)


class TestLoader:
    @BY_ROUTE
    @pytest.mark.parametrize(("k", "swap"), [(keras, "each"), (tf_keras, "together")], ids=["keras", "tf_keras"])
    def test_loads_that_come_again(self, driver, tmp_path, k, route, cut, swap):
        make = models.functional
        stock, ours = d.twins_of(_kept(make), k)
        paths = [d.saved(lambda: make(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        with fa.Loader(ours, options=tiny(route=route, cut=cut, swap=swap)) as loader:
            for number, path in enumerate([*paths, *paths]):
                d.perturb(ours, 0.5)
                stock.load_weights(path)
                report = loader.load_async(path).result(60) if number % 2 else loader.load(path)
                assert report.plan == ("kept" if number else "made")
                assert set(report.routes) == {"direct" if route == "direct" else "fused"}
                assert d.differences(loaded(ours), loaded(stock)) == []

    def test_casts_that_come_again(self, driver, files, pair):
        stock, ours = pair(keras, "bfloat16")
        for cut in CUTS:
            with fa.Loader(ours, options=tiny(cut=cut)) as loader:
                stock.load_weights(files(keras, "weights.h5"))
                for _ in range(3):
                    d.perturb(ours, 0.5)
                    assert loader.load(files(keras, "weights.h5")).routes["fused"] > 5
                    assert d.differences(loaded(ours), loaded(stock)) == []


class TestAssign:
    @pytest.mark.parametrize("route", ["auto", "direct"])
    def test_tensors_of_a_catalog(self, driver, files, route):
        path = files(keras, "weights.h5")
        wanted = holding_floats(path)
        with tf.device("CPU:1"):
            variables = {name: tf.Variable(tf.zeros(value.shape)) for name, value in wanted.items()}
            halves = {name: tf.Variable(tf.zeros(value.shape, tf.bfloat16)) for name, value in wanted.items()}
        catalog = fa.inspect(path)
        report = fa.assign([(variables[name], catalog[name]) for name in wanted], options=tiny(route=route))
        assert sum(report.routes.get(name, 0) for name in ("fused", "direct")) == sum(
            v.size > 0 for v in wanted.values()
        )
        assert all(variables[name].numpy().tobytes() == value.tobytes() for name, value in wanted.items())
        fa.assign([(halves[name], catalog[name]) for name in wanted], options=tiny(route=route))
        with np.errstate(all="ignore"):
            expected = {name: value.astype(tf.bfloat16.as_numpy_dtype) for name, value in wanted.items()}
        assert all(halves[name].numpy().tobytes() == value.tobytes() for name, value in expected.items())

    def test_arrays_go_through_the_host(self, driver):
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=shape).astype("f4") for shape in SHAPES]
        with tf.device("CPU:1"):
            variables = [tf.Variable(tf.zeros(array.shape)) for array in arrays]
        fa.assign(zip(variables, arrays, strict=True))
        assert all(v.numpy().tobytes() == a.tobytes() for v, a in zip(variables, arrays, strict=True))
        assert all("CPU:1" in v.device for v in variables)
        assert not driver.copies


def test_a_plan_says_which_route_and_why(driver, files, pair):
    plan: Plan = fa.plan(pair(keras, "float32")[1], files(keras, "weights.h5"), options=tiny())
    assert {row[3].partition(" ")[0] for row in plan.rows()} == {"fused", "direct", "arena"}
    assert "in one copy" not in plan.to_dict()["reasons"]["direct"]
    assert simulated.DEVICES[0] in str(plan)
    assert "too large to share a copy" in str(plan)
