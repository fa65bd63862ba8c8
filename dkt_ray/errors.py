"""The few errors that dkt-ray raises for people; every message names the field, the value found and the remedy."""


class DktError(Exception):
    """Base of all errors that a job prints as one line and turns into exit code 2."""


class ConfigError(DktError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class InputError(DktError, ValueError):
    """Interaction data or a request is not what the schema says."""


class StorageError(DktError):
    """A store cannot be reached, read or written."""


class NotFoundError(StorageError):
    """No object under the given key."""


class ConflictError(StorageError):
    """A conditional write lost: somebody else wrote the object first."""


class TrainingError(DktError):
    """A fit cannot go on: its loss diverged, or there is nothing to learn from."""


class BundleError(DktError):
    """A bundle is damaged, incomplete, or does not answer as it did when it was made."""


class UnavailableError(DktError):
    """Nothing can answer now; the same request may be answered later."""


class OverloadedError(UnavailableError):
    """More is waiting than can be answered in time."""


class RolloutError(DktError):
    """A new bundle did not come up; the old one keeps serving."""


class ClusterError(DktError):
    """There is no Ray cluster to attach to."""
