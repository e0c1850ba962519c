"""What only the library can load: conversions and layers that load themselves, by a loader."""

import itertools

import pytest
import tf_keras

import fastassign as fa
from fastassign.errors import ReadFailed
from support import differential as d
from support import faults
from support.loading import KEPT, LONG, MADE, TOGETHER, compare, dense, in_background
from support.running import set_runtime


def keras_1(path, seed):
    """Write a file of Keras 1, whose convolutions tf_keras rewrites, and return what makes the model."""

    def build():
        inputs = x = tf_keras.Input((6, 2))
        for name in ("one", "two"):
            x = tf_keras.layers.Conv1D(3, 2, name=name)(x)
        return tf_keras.Model(inputs, x, name="old")

    layers = []
    for layer in d.fill(d.fresh(build), seed).layers[1:]:
        kernel, bias = (weight.numpy() for weight in layer.weights)
        layers.append((layer.name, [(f"{layer.name}/k:0", kernel[:, None]), (f"{layer.name}/b:0", bias)]))
    d.write_legacy(path, layers, version="1", backend="tensorflow")
    return build


class TestLibraryCode:
    """What only the library can load, it loads in the burst."""

    def test_conversions(self, tmp_path):
        paths = [tmp_path / f"{seed}.h5" for seed in (1, 2)]
        builds = [keras_1(path, seed) for seed, path in enumerate(paths)]
        model, stock = d.twins(builds[0])
        with fa.Loader(model) as loader:
            for turn in range(4):
                load = in_background(loader) if turn % 2 else None
                report = compare(loader, model, stock, paths[turn // 2], load=load)
                assert (report.plan, report.routes) == (KEPT if turn else MADE, {"convert": 2, "fused": 2})

    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_layers_that_load_themselves_read_nothing_under_the_lock(
        self, background, files, contents, model, monkeypatch
    ):
        for layer in model.layers:
            layer.enable_lora(2)
        reads = []

        def read(*_):
            reads.append(lock.is_held)

        class Held:
            is_held = False

            def __enter__(self):
                self.is_held = True

            def __exit__(self, *_):
                self.is_held = False

        lock = Held()
        set_runtime(monkeypatch, make_source=faults.faulty(before=read))
        with fa.Loader(model, lock=lock, options=TOGETHER) as loader:
            for _ in range(2):
                report = loader.load_async(files[1]).result(LONG) if background else loader.load(files[1])
                assert report.routes["hook"] > 0
        assert reads
        assert not any(reads)
        assert [layer.kernel.numpy().tobytes() for layer in model.layers] == contents[1][::2]

    @pytest.mark.parametrize("kind", ["plain", "hooks", "conversions"])
    def test_a_disk_that_fails(self, kind, files, tmp_path, monkeypatch):
        """At any read: no variable has changed in the end."""
        if kind == "conversions":
            path = tmp_path / "m.h5"
            model = d.fresh(keras_1(path, 1))
        else:
            path, model = files[1], d.fresh(dense)
            if kind == "hooks":
                for layer in model.layers:
                    layer.enable_lora(2)
        allowed = [0]

        def fail(*_):
            if not allowed[0]:
                raise OSError(5, "Input/output error")
            allowed[0] -= 1

        set_runtime(monkeypatch, make_source=faults.faulty(before=fail))
        d.perturb(model, 0.5)
        before = d.snapshot(model)
        with fa.Loader(model, options=fa.LoadOptions(threads=1, read_bytes=4096, gap_bytes=0)) as loader:
            for reads in itertools.count():
                allowed[0] = reads
                error = loader.load_async(path).exception(LONG)
                if error is None:
                    break
                assert isinstance(error, ReadFailed)
                assert error.assigned == ()
                d.assert_untouched(model, before)
        assert reads >= (1 if kind == "plain" else 4)
