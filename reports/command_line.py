"""."""


def report_at_the_end(storage: str, studies: list[str]) -> None:
    """."""
