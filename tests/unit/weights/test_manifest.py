"""The cut into buckets, and bytes there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.weights.manifest import Entry, buckets, from_update_info, pack_bucket, to_update_info, views

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def entries(sizes: list[int]) -> list[Entry]:
    return [Entry(f"layer.{i}", torch.uint8, (size,)) for i, size in enumerate(sizes)]


def test_bytes_of_an_entry() -> None:
    assert Entry("weight", torch.float32, (3, 5)).num_bytes == 60
    assert Entry("weight", torch.bfloat16, (3, 5)).num_bytes == 30
    assert Entry("scale", torch.float32, ()).num_bytes == 4


def test_buckets_by_hand() -> None:
    # 4 + 5 = 9 fits 10, with 2 it would be 11 | 2 + 8 = 10 fits exactly | 30 is alone though too large | 1
    cut = buckets(entries([4, 5, 2, 8, 30, 1]), max_bytes=10)
    assert [[entry.num_bytes for entry in bucket] for bucket in cut] == [[4, 5], [2, 8], [30], [1]]


def test_no_room_at_all_is_one_entry_a_bucket() -> None:
    assert [len(bucket) for bucket in buckets(entries([4, 5, 2]), max_bytes=0)] == [1, 1, 1]


def test_parts_of_one_parameter_stay_together() -> None:
    # 4 | three parts of 3 = 9 do not fit beside it | two parts of 7 = 14 are alone though too large | 2 + 3
    sizes, units = [4, 3, 3, 3, 7, 7, 2, 3], [0, 1, 1, 1, 2, 2, 3, 4]
    pairs = zip(sizes, units, strict=True)
    manifest = [Entry(f"l{number}", torch.uint8, (size,), unit) for number, (size, unit) in enumerate(pairs)]
    cut = [[entry.num_bytes for entry in bucket] for bucket in buckets(manifest, 10)]
    assert cut == [[4], [3, 3, 3], [7, 7], [2, 3]]


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 60))
def test_order_is_kept_and_buckets_are_bounded_and_full(sizes: list[int], max_bytes: int) -> None:
    manifest = entries(sizes)
    cut = buckets(manifest, max_bytes)
    assert [entry for bucket in cut for entry in bucket] == manifest
    totals = [sum(entry.num_bytes for entry in bucket) for bucket in cut]
    assert all(bucket for bucket in cut)
    assert all(total <= max_bytes or len(bucket) == 1 for total, bucket in zip(totals, cut, strict=True))
    for total, following in zip(totals, cut[1:], strict=False):
        assert total + following[0].num_bytes > max_bytes  # nothing was cut earlier than it had to be


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return (values / 7 if dtype.is_floating_point else values).to(dtype)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6))
def test_there_and_back_over_shapes_and_dtypes(kinds: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = [filled(shape, dtype, seed) for seed, (shape, dtype) in enumerate(kinds)]
    bucket = [Entry(f"layer.{i}", dtype, shape) for i, (shape, dtype) in enumerate(kinds)]
    buffer = pack_bucket(tensors)
    assert (buffer.dtype, buffer.numel()) == (torch.uint8, sum(entry.num_bytes for entry in bucket))
    unpacked = views(buffer, bucket)
    assert [name for name, _ in unpacked] == [entry.name for entry in bucket]
    for (_, got), sent in zip(unpacked, tensors, strict=True):
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)


def test_bits_survive_that_no_number_has() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    (_, got), *_ = views(pack_bucket([odd]), [Entry("odd", torch.float32, (4,))])
    assert torch.equal(got.view(torch.int32), odd.view(torch.int32))


def test_a_transposed_view_is_packed_as_it_reads() -> None:
    matrix = torch.arange(6.0).view(2, 3).T
    (_, got), *_ = views(pack_bucket([matrix]), [Entry("matrix", torch.float32, (3, 2))])
    assert got.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_a_bucket_owns_its_copy() -> None:
    sent = torch.ones(3, requires_grad=True)
    buffer = pack_bucket([sent])
    with torch.no_grad():
        sent.fill_(7.0)
    (_, got), *_ = views(buffer, [Entry("a", torch.float32, (3,))])
    assert got.tolist() == [1.0, 1.0, 1.0]
    assert not got.requires_grad


@pytest.mark.parametrize("missing", [1, -1])
def test_a_buffer_of_the_wrong_size_is_refused(missing: int) -> None:
    with pytest.raises(RuntimeError):
        views(torch.zeros(12 + missing, dtype=torch.uint8), [Entry("a", torch.float32, (3,))])


def test_the_form_that_the_engines_take() -> None:
    manifest = [Entry("embed.weight", torch.bfloat16, (7, 3), unit=4), Entry("scale", torch.float32, ())]
    assert to_update_info(manifest) == {
        "names": ["embed.weight", "scale"],
        "dtype_names": ["bfloat16", "float32"],
        "shapes": [[7, 3], []],
        "units": [4, -1],
    }
    assert from_update_info(to_update_info(manifest)) == manifest


def test_views_share_the_buffer_where_bytes_are_aligned() -> None:
    bucket = [Entry("a", torch.float32, (2,)), Entry("b", torch.uint8, (1,)), Entry("c", torch.float32, (1,))]
    buffer = torch.zeros(13, dtype=torch.uint8)
    aligned, _, odd = (tensor for _, tensor in views(buffer, bucket))  # the last begins at byte 9
    buffer.fill_(1)
    assert bool(aligned.any())
    assert odd.tolist() == [0.0]
