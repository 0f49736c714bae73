"""The step on this machine: divided by the units of the first layer, or by rows."""

from jobs.nn.optimizers import State
from jobs.nn.parameters import Floats
from jobs.training.data_parallel import DataParallelStep, row_parallel_memory
from jobs.training.gradients import GradientRule
from jobs.training.step import UpdateRule
from jobs.training.unit_parallel import UnitParallelStep, unit_parallel_memory
from storage.schema import SplitSchema


def local_step(
    rule: GradientRule,
    update: UpdateRule,
    parameters: Floats,
    state: State,
    schema: SplitSchema,
    *,
    batch_size: int,
    micro_batches: int,
    threads: int,
) -> DataParallelStep | UnitParallelStep:
    """Return a step that starts from copies of `parameters` and of the optimizer's `state`.

    Mini-batches have at most `batch_size` rows of a split with this `schema`, in `micro_batches`
    parts. A single one is divided by units among at most `threads` cores.
    """
    if micro_batches == 1:
        return UnitParallelStep(
            rule, update, parameters, state, schema, batch_size=batch_size, threads=threads
        )
    return DataParallelStep(
        rule,
        update,
        parameters,
        state,
        schema,
        batch_size=batch_size,
        micro_batches=micro_batches,
        threads=threads,
    )


def step_memory(
    rule: GradientRule, schema: SplitSchema, batch_size: int, micro_batches: int, threads: int
) -> int:
    """Return the bytes of such a step at most, without two copies of the optimizer's state."""
    if micro_batches == 1:
        return unit_parallel_memory(rule, schema, batch_size, threads)
    return row_parallel_memory(rule, schema, batch_size, micro_batches, threads)
