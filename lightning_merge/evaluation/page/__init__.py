"""The report of runs as one HTML page."""

from lightning_merge.evaluation.page.leaks import leaks
from lightning_merge.evaluation.page.render import page, write_page
from lightning_merge.evaluation.page.runs import Run, check_same_images

__all__ = ["Run", "check_same_images", "leaks", "page", "write_page"]
