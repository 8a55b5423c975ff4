import collections
import datetime
import enum
import io
import math
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.packing import pack, unpack

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back_as_they_were(value):
    assert unpack(pack(value)) == value


@given(npst.arrays(npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_arrays_come_back_bit_for_bit(array):
    back = unpack(pack({"data": array}))["data"]
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


@given(npst.arrays(npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)), st.integers(0, 99))
def test_masked_arrays_come_back_with_what_is_masked(array, seed):
    masked = np.ma.array(array, mask=np.random.default_rng(seed).random(array.shape) < 0.5)
    back = unpack(pack({"data": masked}))["data"]
    assert isinstance(back, np.ma.MaskedArray)
    assert back.dtype == array.dtype and back.shape == array.shape and back.data.tobytes() == array.tobytes()
    np.testing.assert_array_equal(back.mask, masked.mask)


def test_masks_of_other_arrays():
    none, one = unpack(pack([np.ma.array([1, 2]), np.ma.masked]))
    assert none.mask is np.ma.nomask and list(none) == [1, 2]
    assert one.shape == () and one.mask.item() is True
    objects = np.ma.array([1, "a", 2**70], mask=[True, False, False], dtype=object)
    assert unpack(pack(objects)) == [None, "a", str(2**70)]


def test_what_msgpack_lacks():
    found = unpack(
        pack({"f": np.float32(0.5), "i": np.int64(7), "c": 1 + 2j, "nan": math.nan, "t": (1, 2), "s": {3},
              "z": np.complex64(3j), "o": np.array([1, "a"], dtype=object), "path": io})
    )  # fmt: skip
    assert math.isnan(found.pop("nan")) and found.pop("path").startswith("<module 'io'")
    assert found == {"f": 0.5, "i": 7, "c": 1 + 2j, "t": [1, 2], "s": [3], "z": 3j, "o": [1, "a"]}


def test_an_array_in_other_order_keeps_its_values():
    array = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(unpack(pack(array)), array)


@pytest.mark.parametrize("data", [b"", b"\x93\x01", pack([1]) + b"x", b"\xc7\x00\x09", b"\xd4\x01\x00"])
def test_other_bytes_are_refused(data):
    with pytest.raises(DocumentError, match=f"{len(data)} bytes must be what this package packed"):
        unpack(data)


class Silent:
    """Neither its text nor what it holds can be had."""

    def __str__(self):
        raise RuntimeError("no text")

    def __iter__(self):
        raise RuntimeError("no content")


def nested(n):
    value = 7
    for _ in range(n):
        value = [value]
    return value


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_texts_come_back_with_surrogates_that_stand_alone(value):
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("value", ["a\ud800b", {"\udc80": 1}, ["\udfff", np.str_("\ud800")]])
def test_surrogates_that_stand_alone(value):
    found, array = unpack(pack([value, np.arange(3)]))
    assert found == value and list(array) == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([2**64], ["18446744073709551616"]),
        ([-(2**63) - 1], ["-9223372036854775809"]),
        ([-(16**5000)], ["-0x1" + "0" * 5000]),
        ([2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
    ],
)
def test_integers_beyond_64_bits_come_as_text(value, wanted):
    assert unpack(pack({"n": value})) == {"n": wanted}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.longdouble(1.5), 1.5),
        (np.clongdouble(1 + 2j), 1 + 2j),
        (np.datetime64("2026-01-02T03:04:05.000000006"), "2026-01-02T03:04:05.000000006"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.timedelta64(3, "s"), "3 seconds"),
        (np.datetime64("NaT"), "NaT"),
        (np.void(b"abc"), b"abc"),
        (np.zeros(1, [("a", "i4"), ("t", "M8[s]")]), [[0, "1970-01-01 00:00:00"]]),
        (np.array(1j, object), 1j),
        (np.array({1}, object), [1]),
        (np.array([2**70, "\ud800", np.int8(3), np.longdouble(0.5)], object), [str(2**70), "\ud800", 3, 0.5]),
        (np.array(["a", "b"], np.dtypes.StringDType()), ["a", "b"]),
    ],
)
def test_numpy_values_of_odd_types(value, wanted):
    assert unpack(pack({"v": value})) == {"v": wanted}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (dict, "<class 'dict'>"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (enum.Enum("Colour", ["RED"]).RED, "Colour.RED"),
        (collections.deque([1, {2}]), [1, [2]]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (memoryview(np.arange(6, dtype=np.uint8))[::2], b"\0\2\4"),
        (Silent(), f"<{__name__}.Silent>"),
        ({Silent: {"a": 1}, "b": [Silent()]}, {str(Silent): {"a": 1}, "b": [f"<{__name__}.Silent>"]}),
        ({(1, (2, 3)): "t", "k": (1, 2)}, {"(1, (2, 3))": "t", "k": [1, 2]}),
        ({(1, 2): "\ud800"}, {"(1, 2)": "\ud800"}),
        ({frozenset([1]): 1}, {"(1,)": 1}),
        ({None: 1, 2: 3, np.int64(4): 5, "t": "\ud800"}, {None: 1, 2: 3, 4: 5, "t": "\ud800"}),
    ],
)
def test_objects_that_msgpack_does_not_know(value, wanted):
    assert unpack(pack({"v": value})) == {"v": wanted}


def test_an_iterator_is_not_used_up():
    numbers = iter([1, 2])
    assert unpack(pack(numbers)).startswith("<list_iterator object")
    assert list(numbers) == [1, 2]


def test_what_holds_itself_or_lies_too_deep_comes_as_text():
    listed, mapped, queued = [1], {"a": 1}, collections.deque([1])
    listed.append(listed)
    mapped["self"] = mapped
    queued.append(queued)
    array = np.empty(1, object)
    array[0] = array
    found = unpack(pack({"l": listed, "m": mapped, "q": queued, "o": array, "deep": nested(5000), "x": np.arange(2)}))
    assert found["l"] == [1, "[1, [...]]"]
    assert found["m"] == {"a": 1, "self": "{'a': 1, 'self': {...}}"}
    assert found["q"] == [1, "deque([1, [...]])"]
    assert len(found["o"]) == 1 and list(found["x"]) == [0, 1]
    assert str(found["deep"]).endswith("['<builtins.list>'" + "]" * str(found["deep"]).count("["))
    assert unpack(pack(nested(600))) == nested(600)


def test_a_value_that_occurs_twice_comes_twice():
    shared = {"a": 2**70, "t": "\ud800"}
    twice = {"one": shared, "two": [shared, shared]}
    plain = {"a": str(2**70), "t": "\ud800"}
    assert unpack(pack(twice)) == {"one": plain, "two": [plain, plain]}


def test_more_than_msgpack_can_hold_is_refused():
    with pytest.raises(DocumentError, match="can't be packed: ValueError"):
        pack({"data": bytes(1 << 32)})
