"""How a user installs what an extra of this project brings."""


def how_to_install(extra: str) -> str:
    """The command, and where it is to be given."""
    return f'in the folder of this project: pip install -c constraints.txt -e ".[{extra}]"'
