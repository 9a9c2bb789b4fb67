"""Facts about a method, known before it runs; commands, tables and documents read them."""

from dataclasses import dataclass
from enum import Flag
from typing import Any


class Needs(Flag):
    """What a method needs besides weights; a larger value asks for more.

    A method that needs images or heads runs the network.

    Examples:
        >>> Needs.NETWORK in Needs.INPUTS, Needs.HEADS in Needs.INPUTS
        (True, False)
    """

    NOTHING = 0
    NETWORK = 1
    INPUTS = NETWORK | 2
    INPUTS_OF_EVERY_TASK = INPUTS | 4
    HEADS = NETWORK | 8
    LABELS = INPUTS | 16

    def words(self) -> str:
        """Describe the needs, as in "a network and unlabelled inputs of every task".

        Examples:
            >>> (Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS).words()
            'a network, unlabelled inputs of every task and heads'
        """
        kind = "labelled" if Needs.LABELS in self else "unlabelled"
        whose = " of every task" if Needs.INPUTS_OF_EVERY_TASK in self else ""
        named = {
            "a network": Needs.NETWORK in self,
            f"{kind} inputs{whose}": Needs.INPUTS in self,
            "heads": Needs.HEADS in self,
        }
        *most, last = [name for name, needed in named.items() if needed] or ["nothing but weights"]
        return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a method, a transform or a module that learns coefficients.

    Attributes:
        reference: Authors and year of the publication.
        arxiv: Its arXiv number, if it has one.
        needs: What it needs besides weights.
        readings: How often it reads all task vectors without a transform in front.
        on_top: Whether its needs and readings add to those of a method that it wraps or precedes.
        merges_in_plan: Whether its plan already merges, so that no reading follows; a wrapper reads
            once more.
        told_task: Whether its network is told the task of an image, besides choosing the head.
        whole: Whether it processes whole tensors, as matrices, instead of tiles.
        recalibrates: Whether the BatchNorm statistics of its result can be re-estimated.
        work: What takes long besides the readings, for K experts.
        memory: What it holds besides tiles.

    Examples:
        >>> facts = Facts(reference="Ilharco et al., 2023", arxiv="2212.04089", readings=2)
        >>> facts.words()
        'needs nothing but weights; costs 2 readings; Ilharco et al., 2023, arXiv:2212.04089'
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
        """Return the reference with its arXiv number."""
        return self.reference + (f", arXiv:{self.arxiv}" if self.arxiv else "")

    def costs(self) -> str:
        """Return the cost, as in "2 readings, 1 pass of the network"."""
        reading = f"{'more ' * self.on_top}reading{'s' * (self.readings != 1)}"
        readings = f"{self.readings} {reading}" if self.readings else ""
        memory = f"memory of {self.memory}" if self.memory else ""
        return ", ".join(filter(None, [readings, self.work, memory])) or "nothing"

    def words(self) -> str:
        """Return needs, costs and reference in one line."""
        return f"needs {self.needs.words()}; costs {self.costs()}; {self.cited()}"


def shown_to(maker: Any) -> tuple[str, ...] | None:
    """Return what is shown to a method or module besides weights, and to its network.

    Args:
        maker: A method, a transform, or a module that learns coefficients.

    Returns:
        Any of "unlabelled", "labelled" (inputs) and "task" (of every input, besides choosing the
        head); empty if weights are enough, None for a class that states no facts.

    Examples:
        >>> from lightning_merge.methods import EMR, Average, RegMean
        >>> shown_to(Average()), shown_to(RegMean()), shown_to(EMR()), shown_to(object())
        ((), ('unlabelled',), ('task',), None)
    """
    stated = hasattr(maker, "requirements")
    facts = maker.requirements() if stated else getattr(maker, "facts", None)
    if facts is None:
        return None
    labelled = Needs.LABELS in facts.needs
    unlabelled = Needs.INPUTS in facts.needs and not labelled
    kinds = {"unlabelled": unlabelled, "labelled": labelled, "task": facts.told_task}
    return tuple(name for name, shown in kinds.items() if shown)
