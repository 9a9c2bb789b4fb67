"""One example of a text task, as encoders of text and T5 get it."""

from typing import NamedTuple


class Texts(NamedTuple):
    """The texts of one example.

    Attributes:
        texts: One text, or the two of a pair; none if only the answers tell examples apart.
        prompt: Input of a network that writes its answer.
        answers: What it may answer, one for each class.

    Examples:
        >>> review = Texts(("a joy",), "Is this good or bad? a joy", ("bad", "good"))
        >>> review.answers[1]
        'good'
    """

    texts: tuple[str, ...] = ()
    prompt: str = ""
    answers: tuple[str, ...] = ()
