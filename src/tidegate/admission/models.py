"""The gate's one table: which life of the shared store this deployment is in."""

from datetime import datetime

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from tidegate.storage.base import Base
from tidegate.storage.types import UtcDateTime


class StoreEpoch(Base):
    """One row, `shared`: the store's run id as it was last seen, and since when. A new one is a store that may have
    lost its memory.
    """

    __tablename__ = "store_epochs"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)
