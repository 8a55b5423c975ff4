"""Errors of the package: one base, named subclasses, each also the built-in that it refines.

A message says what was expected, what came, and what to do about it.
"""


class BlueskyCDIError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(BlueskyCDIError, ValueError):
    """A configuration file or value is not usable."""


class GeometryError(BlueskyCDIError, ValueError):
    """The experiment's geometry is missing, incomplete or impossible."""


class FrameError(BlueskyCDIError, ValueError):
    """A diffraction frame can't be used: wrong shape, NaN, negative counts."""


class DocumentError(BlueskyCDIError, ValueError):
    """A run's documents lack something that the reconstruction needs."""


class NoPtychographyError(DocumentError):
    """A run is another measurement than a scan of diffraction frames: nothing of it is to be reconstructed.

    Parameters
    ----------
    message : str
        What it lacks.
    has_frames : bool
        Whether it has frames all the same.
    """

    def __init__(self, message: str, *, has_frames: bool = False) -> None:
        super().__init__(message)
        self.has_frames = has_frames


class ScanFileError(BlueskyCDIError, OSError):
    """A file of measured data can't be read: absent, truncated, not of the stated form."""


class WeightsError(BlueskyCDIError, ValueError):
    """Network weights are absent, damaged or of another configuration."""


class WorkerError(BlueskyCDIError, RuntimeError):
    """The reconstruction worker stopped; the raw run is not affected."""


class HostError(BlueskyCDIError, ConnectionError):
    """A host of reconstructions can't be reached, or refuses."""


class SearchSpaceError(BlueskyCDIError, ValueError):
    """The positions among which an agent may choose are empty or not usable."""


class CatalogError(BlueskyCDIError, ConnectionError):
    """The catalog can't be reached, or does not hold what was asked for."""


class JournalError(BlueskyCDIError, OSError):
    """A run's documents can't be written to the journal or read from it."""


class RefusedError(JournalError):
    """The journal can never take a document; to give the same one again is of no use."""
