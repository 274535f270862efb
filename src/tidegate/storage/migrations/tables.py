"""Every table of the models, for the programs that compare them with a database."""

import importlib
from pathlib import Path

from sqlalchemy import MetaData

import tidegate
from tidegate.storage.base import Base


def all_tables() -> MetaData:
    """The tables of each feature's `models.py`: they are found by their name, so that none is forgotten."""
    for path in sorted(Path(tidegate.__file__).parent.glob("*/models.py")):
        importlib.import_module(f"tidegate.{path.parent.name}.models")
    return Base.metadata
