"""What can go wrong with a registry: user errors that a server can tell apart."""
from ..errors import UserError


class RegistryError(UserError):
    """`status` is the HTTP status that a server gives for it, `code` a word that programs can compare, `details` more of it
    as JSON values."""
    status = 400
    code = "invalid-request"

    def __init__(self, message: str, **details):
        super().__init__(message)
        self.details = details


class Invalid(RegistryError):
    """A value that cannot be used: a label, a quad, a threshold."""
    status, code = 422, "invalid-value"


class NotFound(RegistryError):
    """No such collection, type, reference, event, model."""
    status, code = 404, "not-found"


class Conflict(RegistryError):
    """What is there already stands against it."""
    status, code = 409, "conflict"


class Refused(Conflict):
    """The registration gate found something; `force` registers all the same. `findings` as from `gate.findings`."""
    code = "refused"

    def __init__(self, message: str, findings):
        super().__init__(message, findings=[finding._asdict() for finding in findings])
        self.findings = findings


class Busy(RegistryError):
    """Another process holds the store; try again."""
    status, code = 503, "busy"


class StoreFull(RegistryError):
    """No room on the disk: nothing was changed, and reading goes on."""
    status, code = 507, "disk-full"


class Damaged(RegistryError):
    """The store does not hold what it should; `docmetric check` says more."""
    status, code = 500, "damaged-store"


class Outdated(Busy):
    """What an image was embedded for has changed since."""
