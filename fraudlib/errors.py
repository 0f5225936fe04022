"""The errors of this project: each message says what was expected, what was found, where, and what to do."""


class FraudError(Exception):
    """Base of every error that this project raises on purpose."""


class SchemaError(FraudError):
    """A file or a record is not what the schema says; the message names the column or field."""


class DataError(FraudError):
    """A month, file or split is missing, empty or unreadable."""


class BundleError(FraudError):
    """A bundle is incomplete, altered, of another format or not the one that its manifest describes."""


class GateError(FraudError):
    """A candidate did not pass the gate and was not sealed."""


class ParameterError(FraudError):
    """A parameter is unknown or has the wrong type."""


class ServiceError(FraudError):
    """A service could not start or go on: a busy port, a broker that does not answer, a missing bundle."""


class ShapeError(FraudError):
    """An array has another shape than the model was made for."""
