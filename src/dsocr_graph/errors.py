"""The errors of dsocr_graph: one small tree; every class is also the builtin a caller expects."""

from __future__ import annotations


class DsocrGraphError(Exception):
    """Base of everything dsocr_graph raises on purpose.

    Examples
    --------
    >>> issubclass(ModelConfigError, DsocrGraphError) and issubclass(ModelConfigError, ValueError)
    True
    """


class ModelConfigError(DsocrGraphError, ValueError):
    """A model configuration that cannot be built: a wrong, missing or unsupported value."""


class ModelInputError(DsocrGraphError, ValueError):
    """Tensors given to a model that do not fit together or do not fit the model."""


class CheckpointError(DsocrGraphError, ValueError):
    """A checkpoint whose tensors do not fit the model, or that is not in a safe format."""


class CheckpointNotFoundError(DsocrGraphError, FileNotFoundError):
    """A checkpoint directory, or a file it needs, that is not there."""


class MissingKernelError(DsocrGraphError, ImportError):
    """A kernel package that the chosen implementation needs and that is not installed."""


class CaptureError(DsocrGraphError, RuntimeError):
    """A model, or a stage of it, that torch.export cannot capture."""

    other_stages: bool = False  # whether there are stages beside the one that fails


class MissingLoweringError(DsocrGraphError, LookupError):
    """ATen operators for which no lowering rule exists."""


class LoweringRuleError(DsocrGraphError, RuntimeError):
    """A lowering rule that fails on a call."""


class UnknownModelError(DsocrGraphError, KeyError):
    """A model name that is not registered."""

    def __str__(self) -> str:
        """Return the message itself; a KeyError would quote it."""
        return str(self.args[0])


class FactoryError(DsocrGraphError, ValueError):
    """A factory of a model that is not there, fails, or returns something else."""


class OptionError(DsocrGraphError, ValueError):
    """Options of an analysis that do not go together."""


class OutputError(DsocrGraphError, OSError):
    """Artefacts that cannot be written where they were asked for."""


class UnknownOperatorError(DsocrGraphError, LookupError):
    """An operator, or an overload of one, that this torch does not have."""


class OperatorArgumentError(DsocrGraphError, ValueError):
    """An argument that an operator does not have, or whose text stands for nothing in torch."""


class ReplayError(DsocrGraphError, ValueError):
    """A captured stage and the module or inputs to run it on that do not belong together."""


class MeasurementMemoryError(DsocrGraphError, MemoryError):
    """A model, or a stage of it at some sizes, that the device to measure on has no memory for."""


class MissingDeviceError(DsocrGraphError, RuntimeError):
    """A device that is asked for and not there, such as CUDA without a GPU."""


class PlanError(DsocrGraphError, ValueError):
    """Sizes that a calibration cannot be planned for, or a plan that does not fit the time given for it."""


class OperandError(DsocrGraphError, ValueError):
    """An operator call whose operands cannot be made from its signature alone."""


class JournalError(DsocrGraphError, ValueError):
    """A calibration that was interrupted and cannot be continued: of another machine, torch or plan, or damaged."""


class ClockError(DsocrGraphError, RuntimeError):
    """A device that cannot be timed as it is."""


class UnfinishedCalibrationError(DsocrGraphError, RuntimeError):
    """A calibration that is asked for before each of its calls was timed once."""
