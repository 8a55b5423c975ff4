import io
import math

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
