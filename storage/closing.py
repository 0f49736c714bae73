"""Things that hold a file, a lock, a client or threads: they close when their block ends."""

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager whose end is `close`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held; harmless when called again."""

    def __enter__(self) -> Self:
        """Itself, already open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close, whatever happened."""
        self.close()
