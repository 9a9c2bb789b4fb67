"""What is known of a method before it runs, as data; commands, tables and documents read it."""

from dataclasses import dataclass
from enum import Flag


class Needs(Flag):
    """What a method takes beside weights; the larger the value, the more it asks for.

    Whoever needs images or heads runs the network.
    """

    NOTHING = 0
    NETWORK = 1
    IMAGES = NETWORK | 2
    IMAGES_OF_EVERY_TASK = IMAGES | 4
    HEADS = NETWORK | 8
    LABELS = IMAGES | 16

    def words(self) -> str:
        """Name them, as in "a network and unlabelled images of every task"."""
        kind = "labelled" if Needs.LABELS in self else "unlabelled"
        whose = " of every task" if Needs.IMAGES_OF_EVERY_TASK in self else ""
        named = {
            "a network": Needs.NETWORK in self,
            f"{kind} images{whose}": Needs.IMAGES in self,
            "heads": Needs.HEADS in self,
        }
        *most, last = [name for name, needed in named.items() if needed] or ["nothing but weights"]
        return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a method, a transform or a module that learns coefficients.

    Attributes:
        reference: Who published it, and when.
        arxiv: Its number on arXiv, where it is there.
        needs: What it takes beside weights.
        readings: How often it reads all task vectors when no transform stands in front.
        on_top: Whether its needs and readings come on top of those of a method, which it wraps or
            stands in front of.
        merges_in_plan: Whether its plan merges on the way, so that no reading comes after; what
            wraps it reads once more.
        told_task: Whether its network is told which task an image is of, beside its head.
        whole: Whether it sees whole tensors, as matrices, instead of tiles.
        recalibrates: Whether BatchNorm statistics of its result can be measured anew.
        work: What takes long beside the readings, for K experts.
        memory: What it holds beside tiles.
    """

    reference: str = ""
    arxiv: str = ""
    needs: Needs = Needs.NOTHING
    readings: int = 1
    on_top: bool = False
    merges_in_plan: bool = False
    told_task: bool = False
    whole: bool = False
    recalibrates: bool = True
    work: str = ""
    memory: str = ""

    def cited(self) -> str:
        """Return the reference with its number on arXiv."""
        return self.reference + (f", arXiv:{self.arxiv}" if self.arxiv else "")

    def costs(self) -> str:
        """Return what it takes, as in "2 readings, 1 pass of the network"."""
        reading = f"{'more ' * self.on_top}reading{'s' * (self.readings != 1)}"
        readings = f"{self.readings} {reading}" if self.readings else ""
        memory = f"memory of {self.memory}" if self.memory else ""
        return ", ".join(filter(None, [readings, self.work, memory])) or "nothing"

    def words(self) -> str:
        """All in one line, to be read."""
        return f"needs {self.needs.words()}; costs {self.costs()}; {self.cited()}"
