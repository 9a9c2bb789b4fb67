"""Visual towers of open_clip."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.hub import offline_if_unreachable
from lightning_merge.core.errors import InputError
from lightning_merge.models.activation import Activation, activation_in
from lightning_merge.models.config_files import require_side
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.loading import unknown_name
from lightning_merge.models.memory_format import MemoryFormat


class OpenClipEncoder(Encoder):
    """Visual tower of any open_clip model; the text tower is dropped.

    Features are the image embeddings that zero-shot heads compare with text embeddings. OpenAI's
    weights and all experts fine-tuned from them need a ``-quickgelu`` model.

    Args:
        name: Model, such as ViT-B-32-quickgelu, ViT-B-16, ViT-L-14 or ViT-H-14.
        pretrained: Tag of published weights, such as openai or laion2b_s34b_b79k; none if empty.
        weights: File of weights, of the tower or of the whole model, under the names of open_clip
            or transformers. If given, ``pretrained`` only tells which weights these were fine-tuned
            from, for the preprocessing and the check of the activation; nothing is downloaded.
            Vision towers of transformers, which lack the projection, can be loaded into the
            encoder afterwards and get the projection of these weights.
        image_size: Side of the square input, in pixels; the model's own by default. open_clip
            interpolates the position embeddings of a tag's weights; a file must have been trained
            at this size.
        memory_format: Layout of the images: contiguous, channels_last, or auto, channels_last if
            more than half of the parameters are weights of 2-D convolutions.

    Raises:
        InputError: The name or tag is unknown, the model takes no images of this size, the weights
            need the other activation, cannot be loaded or fit another architecture.

    Warns:
        InputWarning: A model with the other activation exists, and neither a tag nor a file tells
            which one the weights were trained with.

    Examples:
        >>> OpenClipEncoder("ViT-B-23")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: unknown name 'ViT-B-23'; did you mean ViT-B-32,
        ViT-S-32, ViT-M-32, ViT-B-16, ViT-B-32-256?
    """

    library = "open_clip"

    def __init__(
        self,
        name: str = "ViT-B-32-quickgelu",
        pretrained: str | None = None,
        weights: str | Path | None = None,
        image_size: int | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        import open_clip

        if image_size is not None:
            require_side(image_size=image_size)
        if weights is not None:
            open_checkpoint(weights)  # report a missing file before building a large tower
        pretrained = pretrained or None  # the command line cannot give null
        visual = create_clip(
            name, pretrained, download=weights is None, image_size=image_size
        ).visual
        if getattr(visual, "output_tokens", False):  # CoCa returns its tokens as well
            visual.output_tokens = False
        preprocess = ImagePreprocess.from_open_clip(visual.preprocess_cfg).at(image_size)
        dim = open_clip.get_model_config(name)["embed_dim"]
        super().__init__(visual, preprocess, dim, memory_format)
        if image_size is not None:
            self.check_size()
        self.activation = activation(name, visual, settled=pretrained is not None)
        if weights is not None:
            self.load(weights)
        if (pretrained or weights) and "proj" in visual.state_dict():
            self.spare = {"proj": visual.proj.detach().clone()}


def create_clip(
    name: str,
    pretrained: str | None = None,
    *,
    download: bool = True,
    image_size: int | None = None,
) -> Any:
    """Build a whole open_clip model in eval mode.

    Args:
        name: Model name of open_clip.
        pretrained: Tag of published weights.
        download: Load the tag's weights; otherwise only its preprocessing is used and the
            weights are random.
        image_size: Side of the images, if not the model's own.

    Raises:
        InputError: See :class:`OpenClipEncoder`.

    Examples:
        >>> create_clip("ViT-B-32", pretrained="openai")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: name='ViT-B-32' does not have the activation of
        pretrained='openai', whose weights were trained with QuickGELU: use
        name='ViT-B-32-quickgelu'
    """
    import open_clip

    tag, fetched = tag_config(name, pretrained), pretrained is not None and download
    options: dict[str, Any] = {"force_image_size": image_size}
    options |= {"pretrained": pretrained} if fetched else {"force_preprocess_cfg": tag}
    what, remedy = f"the text tower of {name}", ""
    if fetched:
        what = f"pretrained={pretrained!r}: the weights of {name}"
        remedy = ", or give a file as weights"
    asks = fetched or _text_of(name, "hf_model_name")
    with quiet(), _fetching(what, asks=asks, remedy=remedy):
        return open_clip.create_model(name, **options).eval()


def tokenizer(name: str) -> Any:
    """Return the tokenizer of an open_clip model; some come from the Hub.

    Raises:
        InputError: It cannot be loaded.

    Examples:
        >>> tokenizer("ViT-B-32")(["a photo of a cat"])[0, :7].tolist()
        [49406, 320, 1125, 539, 320, 2368, 49407]
    """
    import open_clip

    asks = _text_of(name, "hf_tokenizer_name")
    with _fetching(f"the tokenizer of {name}", asks=asks):
        return open_clip.get_tokenizer(name)


def _text_of(name: str, key: str) -> bool:
    """Return whether part of the text tower comes from the Hub instead of open_clip."""
    import open_clip

    return bool(open_clip.get_model_config(name).get("text_cfg", {}).get(key))


@contextmanager
def _fetching(what: str, *, asks: bool, remedy: str = "") -> Iterator[None]:
    """Allow requests to the Hub if needed, and report what could not be loaded."""
    try:
        with offline_if_unreachable() if asks else nullcontext():
            yield
    except (OSError, RuntimeError) as error:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{what} could not be loaded ({reason}). Go online once{remedy}"
        ) from error


def activation(name: str, model: nn.Module, *, settled: bool) -> Activation | None:
    """Return the activation of an open_clip model, and the name of its counterpart.

    Args:
        name: Model name of open_clip.
        model: The model, or a tower of it.
        settled: Whether a tag tells which activation the weights need.

    Examples:
        >>> own = activation("ViT-B-32", nn.Sequential(nn.GELU()), settled=True)
        >>> own.kind, own.other
        ('gelu', "name='ViT-B-32-quickgelu'")
    """
    import open_clip

    if (kind := activation_in(model)) is None:
        return None
    other = _with_other_activation(name)
    known = other in open_clip.list_models()
    settle = "" if settled else "give pretrained, the tag of the weights that they come from"
    return Activation(kind, f"name={name!r}", f"name={other!r}" if known else "", settle)


def _with_other_activation(name: str) -> str:
    plain = name.removesuffix("-quickgelu")
    return f"{name}-quickgelu" if name == plain else plain


def tag_config(name: str, pretrained: str | None) -> dict[str, Any]:
    """Return open_clip's record of a tag of weights; empty without a tag.

    Args:
        name: Model name of open_clip.
        pretrained: The tag.

    Raises:
        InputError: Name or tag is unknown, or they do not fit.

    Examples:
        >>> tag_config("ViT-B-32-quickgelu", "openai")["quick_gelu"]
        True
    """
    import open_clip

    if name not in open_clip.list_models():
        raise unknown_name("name", name, open_clip.list_models())
    if pretrained is None:
        return {}
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(name)
        remedy = f"Tags of {name}: {', '.join(tags) or 'none'}; pass a file as weights"
        raise unknown_name("pretrained", pretrained, tags, remedy)
    needs = bool(config.get("quick_gelu", False))
    other = _with_other_activation(name)
    has = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if needs != has and other in open_clip.list_models():
        trained = "QuickGELU" if needs else "GELU"
        raise InputError(
            f"name={name!r} does not have the activation of pretrained={pretrained!r}, whose "
            f"weights were trained with {trained}: use name={other!r}"
        )
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip's warning that weights are random, as the caller asked for that.

    Examples:
        >>> with quiet():
        ...     logging.warning("No pretrained weights loaded")
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)
