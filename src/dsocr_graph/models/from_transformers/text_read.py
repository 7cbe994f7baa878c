"""What a model of text reads for a request; importing this imports no torch."""

from __future__ import annotations

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
