import pytest

from bluesky_cdi.errors import BlueskyCDIError, DocumentError
from bluesky_cdi.units import METRES_PER, metres_per


@pytest.mark.parametrize(
    ("unit", "metres"),
    [
        ("m", 1),
        ("mm", 1e-3),
        ("um", 1e-6),
        ("\u00b5m", 1e-6),
        ("\u03bcm", 1e-6),
        ("micron", 1e-6),
        ("microns", 1e-6),
        ("nm", 1e-9),
    ],
)
def test_lengths(unit, metres):
    assert metres_per(unit, "y") == metres


@pytest.mark.parametrize("unit", [None, "", "deg", "MM", "Mm", "counts", "pixel", " um"])
def test_what_is_no_length_is_refused_with_the_devices_name(unit):
    with pytest.raises(DocumentError, match=rf"^stage_y must state a unit of length, one of m, mm, .* states {unit!r}"):
        metres_per(unit, "stage_y")


def test_the_error_is_also_a_value_error():
    assert issubclass(DocumentError, BlueskyCDIError) and issubclass(DocumentError, ValueError)
    assert all(value > 0 for value in METRES_PER.values())
