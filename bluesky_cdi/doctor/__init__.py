"""What is right and wrong with an installation, a configuration and a profile's devices, and how to mend it."""

from bluesky_cdi.doctor.findings import Finding
from bluesky_cdi.doctor.installation import examine_installation
from bluesky_cdi.doctor.profile import examine_profile
from bluesky_cdi.doctor.sampling import examine_sampling

__all__ = ["Finding", "examine_installation", "examine_profile", "examine_sampling"]
