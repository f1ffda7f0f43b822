"""What a user says about results to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportOptions:
    """Choices about the columns of a table, or the trials of a study of plain Optuna.

    Attributes:
        value: column of the value, or number of the objective of a study of several; None to find
            it.
        maximize: whether a higher value is better; None for what the source says, else False.
        metric: name of the value; "" for that of its column.
        unit: unit of the value.
        question: what the results are to answer.
        parameters: names of the parameters; empty for all that the source has.
        ignore: columns that are no parameters.
        replicate: column that distinguishes runs of equal parameters; None to find it.
        curve: beginning of the names of the columns of a curve, which end in the step.
    """

    value: str | None = None
    maximize: bool | None = None
    metric: str = ""
    unit: str = ""
    question: str = ""
    parameters: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    replicate: str | None = None
    curve: str = "loss_"
