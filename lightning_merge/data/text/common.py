"""What rows of the task table for text share."""

from typing import Any

GLUE, SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"
VALIDATION: dict[str, Any] = {"test": "validation"}
"""Splits of data sets whose test labels are not published."""
FROM_HUB = "data.source=huggingface fetches it."
