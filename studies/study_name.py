"""Names of studies."""

from studies.errors import ConfigError

MAX_NAME_LENGTH = 200


def check_study_name(name: str) -> None:
    """Require a name that a storage can hold, and that messages and terminals can show.

    Raises:
        ConfigError: if it is too long, blank or not printable.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise ConfigError(
            f"study name of {len(name)} characters is too long: expected at most {MAX_NAME_LENGTH}"
        )
    if not name.strip():
        raise ConfigError(f"study name {name!r} is blank: expected printable characters")
    if not name.isprintable():
        raise ConfigError(f"study name {name!r} has control characters: expected printable ones")
