"""The writer's lock: the only right to write something, wherever that lies."""

from contextlib import AbstractContextManager

from storage.objects import Location, Lock, TakeOver


def writer_lock(
    lock_file: Location, what: str, take_over: TakeOver | None = None
) -> AbstractContextManager[Lock]:
    """Hold the only right to write `what` while the block runs; never waits for it.

    On a local disk the kernel holds the lock and frees it when its holder dies; in an object store
    it is an object, which stays after a death, and which `take_over` gives leave to take. Raises
    `ConflictError` that names the holder where another has it.
    """
    return lock_file.locked(what, take_over)
