"""The largest label ids, each with the reason for its limit."""

from __future__ import annotations

__all__ = ["MAX_FLOAT32_ID", "MAX_ID", "MAX_TABLE_ID"]

MAX_FLOAT32_ID = 2**24 - 1
"""The largest id in a label map that a network sees. Its input is float32, where 2**24 may be a rounded 2**24 + 1."""

MAX_ID = 2**31 - 1
"""The largest id in any label map. Voxels are counted, looked up and merged as int32."""

MAX_TABLE_ID = 2**63 - 1
"""The largest id in a label table, which may describe labels that no label map can hold: int64 holds it."""
