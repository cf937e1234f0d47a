"""Checks the temperatures in the rows of a run's data (``extra_info.temperature``), on which our agent loop acts.

Leans on ``RLHFDataset.dataframe``, a ``datasets.Dataset``. A dataset class of the user's own may have no such
thing, and rows of other people's data may hold anything under this name.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from verl_cov.hooks.reporting import reporting

if TYPE_CHECKING:
    from datasets import Dataset
    from verl.utils.dataset.rl_dataset import RLHFDataset

logger = logging.getLogger(__name__)

AGENT_LOOP = "verl_cov.single_turn"
AGENT_LOOP_FIELD = "actor_rollout_ref.rollout.agent.default_agent_loop"


def check_temperatures(agent_loop: str | None, train: RLHFDataset, validation: RLHFDataset) -> None:
    """Raises ValueError for temperatures that ``agent_loop`` would misapply; warn of ones that nothing applies."""
    if agent_loop != AGENT_LOOP or "agent_name" in columns(validation):
        with reporting("the look for temperatures in the validation rows"):
            if rows := len(temperatures(validation)):
                logger.warning(
                    "verl-cov: %s validation rows have an extra_info.temperature, and nothing acts on it: set %s=%s "
                    "(and leave out a column agent_name)",
                    rows,
                    AGENT_LOOP_FIELD,
                    AGENT_LOOP,
                )
        return
    for field, dataset in (("data.train_files", train), ("data.val_files", validation)):
        _check_type(field, dataset)
    if given := temperatures(train):
        raise ValueError(
            f"verl-cov: {len(given)} training rows have an extra_info.temperature (the first: {given[0]:g}), with "
            f"which {AGENT_LOOP} would train on samples of another policy: set it to null in data.train_files, for "
            "training samples at actor_rollout_ref.rollout.temperature"
        )
    for value in temperatures(validation):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"verl-cov: extra_info.temperature={value:g} in data.val_files must be 0 (greedy), positive or null"
            )


def _check_type(field: str, dataset: RLHFDataset) -> None:
    """Raises ValueError for temperatures that are no numbers; warn of a dataset that cannot be looked into."""
    if _frame(dataset) is None:
        logger.warning(
            "verl-cov: the extra_info.temperature of the rows of %s cannot be checked: %s has no `dataframe` as verl's "
            "RLHFDataset has. %s samples each prompt as its row says",
            field,
            type(dataset).__name__,
            AGENT_LOOP,
        )
    elif (column := _column(dataset)) is not None and len(column) and not _is_number(column.type):
        raise ValueError(
            f"verl-cov: extra_info.temperature in {field} is of type {column.type} (the first: {column[0].as_py()!r}); "
            f"{AGENT_LOOP} needs numbers: write the column as double, with null for prompts that are sampled as "
            "configured"
        )


def columns(dataset: RLHFDataset) -> list[str]:
    """The columns of a verl dataset; none if it cannot be looked into."""
    return getattr(_frame(dataset), "column_names", [])


def temperatures(dataset: RLHFDataset) -> list[float]:
    """Every ``extra_info.temperature`` of a verl dataset that is not null; none if the column is not of numbers."""
    column = _column(dataset)
    return [] if column is None or not _is_number(column.type) else [float(value) for value in column.to_pylist()]


def _column(dataset: RLHFDataset) -> Any:
    """The ``extra_info.temperature`` of a verl dataset that are not null, an Arrow array; None without the field."""
    import pyarrow.compute as pc

    frame = _frame(dataset)
    if frame is None:
        return None
    struct = frame.features.get("extra_info")
    if not isinstance(struct, dict) or "temperature" not in struct:
        return None
    # Through Arrow: half a million rows as Python dictionaries take seconds.
    return pc.drop_null(pc.struct_field(frame.with_format("arrow")[:]["extra_info"], "temperature"))


def _frame(dataset: RLHFDataset) -> Dataset | None:
    """The ``datasets.Dataset`` in a verl dataset, or None."""
    import datasets

    frame = getattr(dataset, "dataframe", None)
    return frame if isinstance(frame, datasets.Dataset) else None


def _is_number(type_: Any) -> bool:
    from pyarrow import types

    return types.is_floating(type_) or types.is_integer(type_) or types.is_decimal(type_)
