import pytest

from bluesky_cdi.errors import BlueskyCDIError, DocumentError
from bluesky_cdi.units import METRES_PER, is_other_quantity, metres_per


@pytest.mark.parametrize(
    ("units", "metres"),
    [
        ("m M meter Meters metre METRES", 1),
        ("cm centimetre", 1e-2),
        ("mm MM Mm (mm) [mm] mm. millimeter Millimetres MILLIMETERS", 1e-3),
        ("um UM Um \u00b5m \u03bcm \u339b micron Microns MICRON micrometer micrometres \u00b5 \u03bc", 1e-6),
        ("nm NM nanometer Nanometres", 1e-9),
        ("pm picometre", 1e-12),
        ("angstrom Angstroms Ang \u00c5 \u212b", 1e-10),
        ("inch Inches in", 25.4e-3),
    ],
)
def test_lengths(units, metres):
    for unit in units.split(" "):
        assert metres_per(unit, "y") == metres, unit
        assert metres_per(f" {unit}\n", "y") == metres


@pytest.mark.parametrize("unit", [None, "", "deg", "counts", "pixel", "m/s", "um2", "xm", 1e-6])
def test_what_is_no_length_is_refused_with_the_devices_name(unit):
    told = rf"^stage_y must state a unit of length, one of m, cm, mm, .* states {unit!r}"
    with pytest.raises(DocumentError, match=told):
        metres_per(unit, "stage_y")


def test_other_quantities():
    assert all(map(is_other_quantity, ("deg", "Degrees", "eV", "keV", "K", "mrad", "s", "degC", "\u00b0")))
    assert not any(map(is_other_quantity, (None, "", "counts", "steps", "um", "pixel")))


def test_the_error_is_also_a_value_error():
    assert issubclass(DocumentError, BlueskyCDIError) and issubclass(DocumentError, ValueError)
    assert all(value > 0 for value in METRES_PER.values())
