"""All rows, in the order in which they are played."""

from __future__ import annotations

from tests.chaos import (
    rows_clients,
    rows_clock,
    rows_controllers,
    rows_gateways,
    rows_leaks,
    rows_network,
    rows_real,
    rows_workers,
)
from tests.chaos.scene import Alone, Row

ROWS: list[Row | Alone] = [
    *rows_workers.ROWS,
    *rows_controllers.ROWS,
    *rows_gateways.ROWS,
    *rows_clients.ROWS,
    *rows_clock.ROWS,
    *rows_network.ROWS,
    *rows_real.ROWS,
    *rows_leaks.ROWS,
]
