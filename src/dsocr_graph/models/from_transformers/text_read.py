"""What a model of text reads for a request; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from dsocr_graph.workloads.errors import ContextTooLongError
from dsocr_graph.workloads.request import InvalidRequestError, Request


def tokens_read(request: Request, reader: str) -> int:
    """Return the tokens that a model reads of each document: the prompt, and the text of pages in place of images.

    Parameters
    ----------
    request : Request
        What is asked for.
    reader : str
        What kind of model it is, for the message.

    Raises
    ------
    InvalidRequestError
        When nothing is left to read.

    Examples
    --------
    >>> tokens_read(Request(name="chat", prompt_tokens=512, new_tokens=3), "a language model")
    512
    """
    tokens = request.prompt_tokens + len(request.images) * request.page_text_tokens
    if tokens == 0:
        raise InvalidRequestError(
            f"request {request.name!r} gives {reader} nothing to read; give prompt_tokens, or images and "
            "page_text_tokens"
        )
    return tokens


def require_positions(settings: Mapping[str, object], needed: int, takes: str) -> None:
    """Refuse a request for more positions than a model says that it has.

    Parameters
    ----------
    settings : mapping of str to object
        The model's configuration.
    needed : int
        Positions of the longest sequence.
    takes : str
        What takes them, for the message.

    Raises
    ------
    ContextTooLongError
        When the model has fewer.

    Examples
    --------
    >>> require_positions({"max_position_embeddings": 512}, 512, "request 'chat' takes 512 tokens")
    """
    longest = settings.get("max_position_embeddings")
    if isinstance(longest, int) and needed > longest:
        raise ContextTooLongError(
            f"{takes}; the model has {longest:,} positions. Ask for fewer, or sweep or analyze its stages at sizes of "
            "their own (`sweep --stage`, `analyze --points`)"
        )
