"""The policy for untrusted files (docs/policy.md): refusals, their words and their cost."""

import gc
import tracemalloc
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.catalog import policy
from fastassign.catalog.classic import index as classic
from fastassign.catalog.policy import RULES
from support import attacks
from support.differential import needs_keras_3_15

# The most bytes that planning a load may allocate, whatever a file declares.
PEAK_BYTES = 8 << 20


def dense(units=3, inputs=4):
    keras.backend.clear_session(free_memory=False)
    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units, name="d")])


def two_layers():
    keras.backend.clear_session(free_memory=False)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="c"), keras.layers.Dense(3, name="d")])


def values(model):
    return [np.asarray(variable.numpy()) for variable in model.variables]


def same(one, other):
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


def hits(path):
    """Whether the classic reader indexes the file."""
    with fa.catalog.file.WeightFile(path) as file:
        return classic.read_contents(file.read_some, base=0, size=file.size, limits=fa.Limits()) is not None


def each(condition=lambda attack: True):
    """Run a test for the attacks that a condition selects."""
    chosen = [attack for attack in attacks.ATTACKS if condition(attack)]
    return pytest.mark.parametrize("attack", chosen, ids=lambda attack: attack.name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.weights.h5"


def expect_refusal(call, attack, path):
    with pytest.raises(fa.Refused) as caught:
        call()
    error = caught.value
    assert error.rule == attack.rule
    assert error.tensor == attack.tensor
    assert attack.tensor in str(error)
    assert (error.option is not None) == attack.option
    notes = "\n".join(error.__notes__)
    assert f"rule: {attack.rule}" in notes
    if attack.option:
        assert error.option == f'LoadOptions(allow={{"{attack.rule}"}})'
        assert error.option in notes
    return error


class TestEveryAttack:
    @each(lambda attack: attack.rule != "expansion")  # no model has a variable of such a shape
    def test_load_is_refused_and_changes_nothing(self, attack, path):
        attack.build(path)
        model = dense()
        before = values(model)
        error = expect_refusal(lambda: fa.load_weights(model, path), attack, path)
        if attack.tensor in {attacks.KERNEL_KEY, attacks.BIAS_KEY}:  # groups: test_a_refused_group_names_the_file
            assert error.file == str(path)
        assert isinstance(error, ValueError)
        assert same(values(model), before)
        expect_refusal(lambda: fa.plan(model, path), attack, path)

    @each(lambda attack: attack.rule != "overlap")  # one dataset alone may be read
    def test_reading_it_from_the_catalog_is_refused_too(self, attack, path):
        attack.build(path)
        catalog = fa.inspect(path)
        error = expect_refusal(lambda: catalog[attacks.KERNEL_KEY], attack, path)
        assert error.file == str(path)
        assert f"{attack.tensor}  refused: " in str(catalog)
        assert {"key": attack.tensor, "rule": attack.rule, "message": str(error), "option": error.option} in (
            catalog.to_dict()["refused"]
        )

    @needs_keras_3_15
    @each(lambda attack: attack.stock is not None)
    def test_stock_refuses_it_in_the_same_words(self, attack, path):
        attack.build(path)
        with pytest.raises(ValueError, match="Not allowed: ") as stock:
            dense().load_weights(path)
        # Keras wraps the text of the object that failed.
        assert attack.stock in str(stock.value)
        error = expect_refusal(lambda: fa.inspect(path)[attacks.KERNEL_KEY], attack, path)
        ours = attack.stock.replace("'0'", f"'{attacks.KERNEL_KEY}'")
        assert str(error).startswith(ours)

    @each(lambda attack: attack.option and attack.loads)
    def test_the_option_loads_what_h5py_reads(self, attack, path):
        attack.build(path)
        with h5py.File(path) as file:
            expected = [file[key][()] for key in (attacks.KERNEL_KEY, attacks.BIAS_KEY)]
        model = dense()
        report = fa.load_weights(model, path, options=fa.LoadOptions(allow={attack.rule}))
        assert report.assigned == 2
        assert same(values(model), expected)
        assert not report.index_cached
        # A permission is not remembered.
        expect_refusal(lambda: fa.load_weights(model, path), attack, path)

    @each()
    def test_it_costs_no_memory(self, attack, path):
        attack.build(path)
        model = dense()
        fa.inspect(path)
        gc.collect()
        tracemalloc.start()
        try:
            fa.inspect(path, options=fa.LoadOptions(index_cache=False))
            with pytest.raises(fa.FastAssignError):
                fa.plan(model, path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < PEAK_BYTES

    @each()
    def test_loads_that_do_not_need_it_are_not_stopped(self, attack, path):
        attack.build(path)
        with h5py.File(path, "r+") as file:
            file.move("layers", "hostile")
            group = file.create_group(attacks.VARS)
            group["0"], group["1"] = attacks.KERNEL, attacks.BIAS
        model = dense()
        report = fa.load_weights(model, path)
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])
        assert report.missing == ()
        if attack.rule != "overlap":  # known only when a load needs both datasets
            refused = fa.inspect(path).contents.refusals
            assert [(key, refusal.rule) for key, refusal in refused.items()] == [
                (attack.tensor.replace("layers", "hostile", 1), attack.rule)
            ]


def test_every_rule_has_an_attack():
    assert {attack.rule for attack in attacks.ATTACKS} >= RULES.keys()
    assert all(attack.option == (attack.rule in RULES) for attack in attacks.ATTACKS)


def test_the_page_agrees_with_the_code():
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    for rule in {attack.rule for attack in attacks.ATTACKS} | {"archive-member", "archive-size"}:
        assert f"`{rule}`" in page
    limits = fa.Limits()
    assert f"| `Limits(max_objects=...)` | {limits.max_objects:,} |" in page
    assert f"| `Limits(max_depth=...)` | {limits.max_depth} |" in page
    assert f"| `Limits(max_text_bytes=...)` | {limits.max_text_bytes >> 20} MiB |" in page
    assert f"| `LoadOptions(max_staging_bytes=...)` | {fa.LoadOptions().max_staging_bytes >> 30} GiB |" in page
    assert (
        f"above {policy.EXPANSION_FLOOR_BYTES >> 20} MiB that declares more than {policy.MAX_EXPANSION} times" in page
    )


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="unknown rule 'soft-links' in allow"):
        fa.LoadOptions(allow={"soft-links"})


def test_a_refused_group_names_the_file(path):
    attacks.soft_link_to_a_group(path)
    with pytest.raises(fa.Refused) as caught:
        fa.load_weights(dense(), path)
    assert caught.value.file == str(path)


class TestDamage:
    """Parts that can't be opened: an error of the file, and only for loads that need them."""

    @pytest.mark.parametrize(
        ("build", "tensor", "options"),
        [
            (attacks.damaged_group, attacks.VARS, {}),
            (attacks.dangling_link, attacks.KERNEL_KEY, {"allow": {"soft-link"}}),
        ],
    )
    def test_needed_and_not(self, path, build, tensor, options):
        build(path)
        model = dense()
        before = values(model)
        with pytest.raises(fa.Malformed, match="can't be opened: ") as caught:
            fa.load_weights(model, path, options=fa.LoadOptions(**options))
        assert caught.value.tensor == tensor
        assert same(values(model), before)
        with h5py.File(path, "r+") as file:
            file.move("layers", "damaged")
            group = file.create_group(attacks.VARS)
            group["0"], group["1"] = attacks.KERNEL, attacks.BIAS
        fa.load_weights(model, path, options=fa.LoadOptions(**options))
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])


class TestLinks:
    def test_a_soft_link_that_is_allowed_does_not_lead_out_of_the_file(self, path):
        attacks.soft_link_to_an_external_link(path)
        model = dense()
        before = values(model)
        with pytest.raises(fa.Refused) as caught:
            fa.load_weights(model, path, options=fa.LoadOptions(allow={"soft-link"}))
        assert (caught.value.rule, caught.value.tensor) == ("external-link", attacks.KERNEL_KEY)
        assert same(values(model), before)
        fa.load_weights(model, path, options=fa.LoadOptions(allow={"soft-link", "external-link"}))
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])

    def test_a_soft_link_that_is_allowed_takes_nothing_from_the_group_it_leads_to(self, path):
        with attacks.write(path) as file:
            file["a"] = h5py.SoftLink("/layers")  # met before the group itself
            file["z"] = h5py.SoftLink("/layers")
        options = fa.LoadOptions(allow={"soft-link"})
        catalog = fa.inspect(path, options=options)
        assert catalog.contents.refusals == {}
        assert sorted(catalog) == sorted(
            f"{root}/dense/vars/{name}" for root in ("a", "layers", "z") for name in ("0", "1")
        )
        model = dense()
        fa.load_weights(model, path, options=options)
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])

    def test_a_soft_link_to_a_group_above_ends(self, path):
        with attacks.write(path) as file:
            file["layers/up"] = h5py.SoftLink("/layers")
        catalog = fa.inspect(path, options=fa.LoadOptions(allow={"soft-link"}))
        assert [(key, r.rule) for key, r in catalog.contents.refusals.items()] == [("layers/up", "group-cycle")]

    @needs_keras_3_15
    def test_a_layer_of_a_legacy_file_behind_a_link(self, tmp_path):
        path = tmp_path / "model.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"d"]
            file["real/kernel"], file["real/bias"] = attacks.KERNEL, attacks.BIAS
            file["real"].attrs["weight_names"] = [b"kernel", b"bias"]
            file["d"] = h5py.SoftLink("/real")
        model = dense()
        before = values(model)
        with pytest.raises(ValueError, match="Not allowed: H5 file with SoftLink"):
            model.load_weights(path)
        for arguments in ({}, {"by_name": True}):
            with pytest.raises(fa.Refused) as caught:
                fa.load_weights(model, path, **arguments)
            assert str(caught.value) == "Not allowed: H5 file with SoftLink (d)"
            assert (caught.value.file, caught.value.tensor, caught.value.rule) == (str(path), "d", "soft-link")
        assert same(values(model), before)
        fa.load_weights(model, path, options=fa.LoadOptions(allow={"soft-link"}))
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])

    @needs_keras_3_15
    def test_the_weights_of_a_whole_model_file_behind_a_link(self, tmp_path):
        path = tmp_path / "model.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("real")
            group.attrs["layer_names"] = [b"d"]
            group["d/kernel"], group["d/bias"] = attacks.KERNEL, attacks.BIAS
            group["d"].attrs["weight_names"] = [b"kernel", b"bias"]
            file["model_weights"] = h5py.SoftLink("/real")
        model = dense()
        with pytest.raises(ValueError, match="Not allowed: H5 file with SoftLink"):
            model.load_weights(path)
        with pytest.raises(fa.Refused, match=r"^Not allowed: H5 file with SoftLink") as caught:
            fa.load_weights(model, path)
        assert caught.value.tensor == "model_weights"
        fa.load_weights(model, path, options=fa.LoadOptions(allow={"soft-link"}))
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])


class TestAliases:
    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    @pytest.mark.parametrize(
        ("build", "tensor"),
        [
            (attacks.two_names_of_one_dataset, "layers/dense_1/vars/0"),
            (attacks.two_names_of_one_group, "layers/dense_1"),
        ],
    )
    def test_two_layers_that_share_bytes(self, path, build, tensor, libver):
        build(path, libver=libver)
        model, stock = two_layers(), two_layers()
        before = values(model)
        with pytest.raises(fa.Refused) as caught:
            fa.load_weights(model, path)
        assert (caught.value.rule, caught.value.tensor) == ("overlap", tensor)
        assert same(values(model), before)
        stock.load_weights(path)
        fa.load_weights(model, path, options=fa.LoadOptions(allow={"overlap"}))
        assert same(values(model), values(stock))
        # There are two variables: a change of one must not reach the other.
        model.variables[0].assign_add(np.ones((3, 3), "f4"))
        assert same(values(model)[1:], values(stock)[1:])


class TestExtents:
    @pytest.mark.parametrize("by_h5py", [False, True])
    @pytest.mark.parametrize("build", [attacks.past_the_end, attacks.far_past_the_end])
    def test_extents_outside_of_the_file(self, path, build, by_h5py):
        build(path, by_h5py=by_h5py)
        model = dense()
        before = values(model)
        with pytest.raises((fa.Truncated, fa.Malformed)) as caught:
            fa.load_weights(model, path)
        assert caught.value.file == str(path)
        assert same(values(model), before)

    def test_a_file_that_was_cut(self, path):
        with attacks.write(path) as file:
            file["big"] = np.arange(5000)
        content = path.read_bytes()
        model = dense()
        before = values(model)
        for length in (0, 7, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises((fa.Truncated, fa.Malformed)) as caught:
                fa.load_weights(model, path)
            assert caught.value.file == str(path)
        assert same(values(model), before)

    def test_both_readers_see_overlaps(self, path):
        attacks.write(path).close()
        assert hits(path)
        with attacks.write(path) as file:
            attacks.off_the_classic_lane(file)
        assert not hits(path)


class TestBombs:
    def test_many_below_the_floor_cost_nothing(self, path):
        attacks.many_bombs(path, 200)
        tracemalloc.start()
        try:
            catalog = fa.inspect(path, options=fa.LoadOptions(index_cache=False))
            model = dense()
            fa.load_weights(model, path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert catalog.nbytes > 200 * (255 << 20)
        assert peak < PEAK_BYTES
        assert same(values(model), [attacks.KERNEL, attacks.BIAS])

    def test_a_declared_shape_never_drives_an_allocation(self, path):
        """200 MiB is below the floor, but the variable's shape differs."""
        with attacks.write(path, kernel=None) as file:
            file.create_dataset(attacks.KERNEL_KEY, (200 << 18,), "<f4", chunks=(1 << 18,), compression="gzip")
        model = dense()
        tracemalloc.start()
        try:
            with pytest.raises(fa.Mismatch, match="shape"):
                fa.load_weights(model, path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < PEAK_BYTES

    def test_a_bomb_with_the_shape_of_the_variable_is_an_array_of_fill_values(self, path):
        with attacks.write(path, kernel=None) as file:
            file.create_dataset(attacks.KERNEL_KEY, (4, 3), "<f4", chunks=(2, 3), compression="gzip", fillvalue=7.0)
        model = dense()
        fa.load_weights(model, path)
        assert same(values(model), [np.full((4, 3), 7, "f4"), attacks.BIAS])

    def test_the_weights_of_a_layer_that_loads_itself_are_bounded(self, path):
        class Own(keras.layers.Layer):
            def build(self, shape):
                self.kernel = self.add_weight(shape=(4, 3), name="kernel")

            def call(self, x):
                return x @ self.kernel

            def load_own_variables(self, store):
                self.kernel.assign(store["0"])

        with h5py.File(path, "w") as file:
            file.create_group("vars")
            file.create_dataset("layers/own/vars/0", (200 << 18,), "<f4", chunks=(1 << 18,), compression="gzip")
        model = keras.Sequential([keras.Input((4,)), Own()])
        tracemalloc.start()
        try:
            with pytest.raises(fa.Budget, match="max_staging_bytes is 1000000"):
                fa.load_weights(model, path, options=fa.LoadOptions(max_staging_bytes=1_000_000))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < PEAK_BYTES


class TestLimits:
    @pytest.mark.parametrize(
        ("build", "limits", "rule"),
        [
            (lambda path: attacks.deep_groups(path, 30), {"max_depth": 20}, "max_depth"),
            (lambda path: attacks.deep_groups(path, 80), {}, "max_depth"),
            (lambda path: attacks.many_links(path, 300), {"max_objects": 200}, "max_objects"),
            (lambda path: attacks.long_names(path, 40, 200), {"max_text_bytes": 4000}, "max_text_bytes"),
        ],
    )
    def test_a_limit_on_the_whole_file(self, path, build, limits, rule):
        build(path)
        model = dense()
        before = values(model)
        options = fa.LoadOptions(limits=fa.Limits(**limits))
        if limits:
            fa.inspect(path)  # keeps the index in the cache, made with wider limits
        with pytest.raises(fa.Refused) as caught:
            fa.load_weights(model, path, options=options)
        assert (caught.value.rule, caught.value.file) == (rule, str(path))
        assert f"limits=Limits({rule}=" in caught.value.option
        assert caught.value.option in "\n".join(caught.value.__notes__)
        assert same(values(model), before)

    def test_the_limits_are_the_last_that_pass(self, path):
        attacks.deep_groups(path, 30)
        with pytest.raises(fa.Refused):
            fa.inspect(path, options=fa.LoadOptions(limits=fa.Limits(max_depth=29)))
        fa.inspect(path, options=fa.LoadOptions(limits=fa.Limits(max_depth=30)))
        attacks.many_links(path, 10)
        with h5py.File(path) as file:
            count = [0]

            def visit(group):
                for name in group:
                    count[0] += 1
                    if group[name] != file["empty"] and isinstance(group[name], h5py.Group):
                        visit(group[name])

            visit(file)
        with pytest.raises(fa.Refused):
            fa.inspect(path, options=fa.LoadOptions(limits=fa.Limits(max_objects=count[0] - 1)))
        fa.inspect(path, options=fa.LoadOptions(limits=fa.Limits(max_objects=count[0])))

    def test_groups_that_multiply_are_walked_once(self, path):
        attacks.group_bomb(path, 40)
        contents = fa.inspect(path).contents
        assert len(contents.groups) < 100
        assert {refusal.rule for refusal in contents.refusals.values()} == {"overlap"}

    def test_where_it_is_allowed_the_limit_on_links_ends_it(self, path):
        attacks.group_bomb(path, 40)
        options = fa.LoadOptions(allow={"overlap"}, limits=fa.Limits(max_objects=2000))
        with pytest.raises(fa.Refused, match="more than 2000 links"):
            fa.inspect(path, options=options)

    def test_a_cached_index_does_not_get_around_smaller_limits(self, path):
        attacks.many_links(path, 300)
        attacks.settle(path)
        fa.inspect(path)
        assert fa.inspect(path).cached
        with pytest.raises(fa.Refused):
            fa.inspect(path, options=fa.LoadOptions(limits=fa.Limits(max_objects=10)))


def test_names_that_are_markup_or_commands_for_the_terminal(path):
    with attacks.write(path) as file:
        file["[/red]:x:"] = np.ones(2)
        file["\x1b[2J"] = np.ones(2)
    model = dense()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fa.load_weights(model, path)
    for text in (str(report), str(fa.plan(model, path))):
        assert "[/red]:x:" in text
        assert "\\x1b[2J" in text
        assert "\x1b" not in text
