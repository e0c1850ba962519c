"""The planner's arithmetic: every byte of every tensor is read once, into its place, in few reads."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastassign.catalog.records import Extent
from fastassign.planning import coalesce as module
from fastassign.planning.coalesce import GAP, MAX_PIECES, Read, Span, coalesce, overlapping, split_batches
from support.profiles import cases

KNOBS = {"read_bytes": st.integers(1, 200), "gap_bytes": st.integers(0, 50)}


@st.composite
def spans(draw, *, overlap=False, max_size=30):
    """Spans sorted by offset, with gaps of every kind; owners with several extents, too."""
    found, offset, filled = [], draw(st.integers(0, 20)), {}
    for _ in range(draw(st.integers(0, max_size))):
        owner = draw(st.integers(0, 12))
        nbytes = draw(st.integers(1, 90))
        start = filled.get(owner, 0)
        found.append(Span(owner, Extent(offset, nbytes), start))
        filled[owner] = start + nbytes
        offset += draw(st.integers(0 if overlap else nbytes, nbytes + 60))
    return found


def simulate(reads, spans, content):
    """Do the reads; return the buffers, and how often each byte of each was written."""
    sizes = {}
    for span in spans:
        sizes[span.owner] = max(sizes.get(span.owner, 0), span.start + span.extent.nbytes)
    buffers = {owner: np.zeros(size, "u1") for owner, size in sizes.items()}
    written = {owner: np.zeros(size, int) for owner, size in sizes.items()}
    for read in reads:
        offset = read.offset
        for piece in read.pieces:
            if piece.owner != GAP:
                place = slice(piece.start, piece.start + piece.nbytes)
                assert piece.start + piece.nbytes <= sizes[piece.owner]
                buffers[piece.owner][place] = content[offset : offset + piece.nbytes]
                written[piece.owner][place] += 1
            offset += piece.nbytes
        assert offset == read.offset + read.nbytes
    return buffers, written


@given(spans(), st.fixed_dictionaries(KNOBS))
def test_every_byte_is_read_once_into_its_place(spans, knobs):
    content = np.random.default_rng(1).integers(0, 256, 6000, dtype="u1")
    buffers, written = simulate(coalesce(spans, **knobs), spans, content)
    for span in spans:
        place = slice(span.start, span.start + span.extent.nbytes)
        expected = content[span.extent.offset : span.extent.offset + span.extent.nbytes]
        assert bytes(buffers[span.owner][place]) == bytes(expected)
    assert all((counts == 1).all() for counts in written.values())


@given(spans(), st.fixed_dictionaries(KNOBS))
def test_reads_keep_to_the_knobs(spans, knobs):
    reads = coalesce(spans, **knobs)
    for read in reads:
        assert 0 < read.nbytes <= knobs["read_bytes"]
        assert len(read.pieces) <= MAX_PIECES
        assert all(piece.nbytes > 0 for piece in read.pieces)
        assert all(0 < piece.nbytes <= knobs["gap_bytes"] for piece in read.pieces if piece.owner == GAP)
        # A gap is read to reach what is behind it.
        assert read.pieces[0].owner != GAP
        assert read.pieces[-1].owner != GAP
    assert [read.offset for read in reads] == sorted(read.offset for read in reads)
    assert all(one.offset + one.nbytes <= other.offset for one, other in itertools.pairwise(reads))


@given(spans(), st.integers(0, 50))
def test_there_are_no_more_reads_than_needed(spans, gap_bytes):
    """With reads of any size there is one for each run of neighbours."""
    runs, end = 0, None
    for span in spans:
        runs += end is None or span.extent.offset - end > gap_bytes
        end = span.extent.offset + span.extent.nbytes
    assert len(coalesce(spans, read_bytes=1 << 40, gap_bytes=gap_bytes)) == runs


@given(spans(overlap=True), st.fixed_dictionaries(KNOBS))
def test_overlapping_spans_are_each_read_whole(spans, knobs):
    content = np.random.default_rng(1).integers(0, 256, 6000, dtype="u1")
    buffers, written = simulate(coalesce(spans, **knobs), spans, content)
    for span in spans:
        expected = content[span.extent.offset : span.extent.offset + span.extent.nbytes]
        assert bytes(buffers[span.owner][span.start : span.start + span.extent.nbytes]) == bytes(expected)
    assert all((counts == 1).all() for counts in written.values())


@cases(20)
@given(spans(max_size=200), st.integers(2, 8))
def test_pieces_are_bounded(spans, most):
    old = module.MAX_PIECES
    module.MAX_PIECES = most
    try:
        reads = coalesce(spans, read_bytes=1 << 40, gap_bytes=60)
    finally:
        module.MAX_PIECES = old
    assert max((len(read.pieces) for read in reads), default=0) <= most


def test_many_small_neighbours_stay_below_the_limit_of_the_system():
    spans = [Span(i, Extent(8 * i, 4)) for i in range(5000)]
    reads = coalesce(spans, read_bytes=1 << 30, gap_bytes=4)
    assert max(len(read.pieces) for read in reads) <= MAX_PIECES < 1024
    assert len(reads) == -(-(5000 * 2 - 1) // MAX_PIECES)


def test_zero_gap_bytes_join_only_what_touches():
    spans = [Span(0, Extent(0, 4)), Span(1, Extent(4, 4)), Span(2, Extent(9, 4))]
    assert [(read.offset, read.nbytes) for read in coalesce(spans, read_bytes=100, gap_bytes=0)] == [(0, 8), (9, 4)]
    assert [(read.offset, read.nbytes) for read in coalesce(spans, read_bytes=100, gap_bytes=1)] == [(0, 13)]


def test_nothing_to_read():
    assert coalesce([], read_bytes=10, gap_bytes=0) == []
    assert list(split_batches([], batch_bytes=10)) == []
    assert overlapping([]) is None


def test_a_large_span_is_cut():
    (first, second, third) = coalesce([Span(3, Extent(100, 25), 7)], read_bytes=10, gap_bytes=0)
    assert [r.offset for r in (first, second, third)] == [100, 110, 120]
    assert third == Read(120, 5, (module.Piece(3, 27, 5),))


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 120))
def test_batches_are_consecutive_and_bounded(sizes, batch_bytes):
    batches = list(split_batches(sizes, batch_bytes=batch_bytes))
    assert [position for batch in batches for position in batch] == list(range(len(sizes)))
    for number, batch in enumerate(batches):
        filled = sum(sizes[position] for position in batch)
        assert len(batch)
        assert (
            filled <= batch_bytes or len(batch) == 1 or sizes[batch[0]] == 0 or filled == max(sizes[p] for p in batch)
        )
        if number + 1 < len(batches):  # greedy: the next one would not have fitted
            assert filled + sizes[batches[number + 1][0]] > batch_bytes


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from("abcdef")), max_size=10))
def test_overlapping_finds_what_comparing_all_pairs_finds(items):
    extents = [(Extent(offset, nbytes), key) for offset, nbytes, key in items]

    def share(one, other):
        return one.offset < other.offset + other.nbytes and other.offset < one.offset + one.nbytes

    pairs = {
        frozenset((key, other_key))
        for i, (one, key) in enumerate(extents)
        for other, other_key in extents[i + 1 :]
        if key != other_key and share(one, other)
    }
    found = overlapping(extents)
    if found is None:
        assert pairs == set()
    else:
        assert frozenset(found) in pairs
