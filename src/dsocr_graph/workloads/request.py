"""Request: what any model is asked to do, in terms of no model; each family turns it into stage runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from dsocr_graph.workloads.errors import WorkloadError
from dsocr_graph.workloads.limits import MAX_BATCH
from dsocr_graph.workloads.pages import PageSize
from modelmeter.workload import StageRun

if TYPE_CHECKING:
    from attrs import Attribute

    from dsocr_graph.workloads.profile import Profile

MAX_TOKENS = 1 << 24  # of one request; a bound against slips, far beyond any model's context
MAX_AUDIO_SECONDS = 24 * 3600.0
SPOKEN_TOKENS = 10 / 3  # a second: 150 words a minute, as audiobooks are read, of 4/3 tokens each; an assumption


class InvalidRequestError(WorkloadError, ValueError):
    """A request with a blank name or a number out of its range."""


def _checked_name(owner: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"the name of a request is {value!r}; expected text that is not blank")


def _checked_count(low: int, high: int):  # noqa: ANN202 - an attrs validator
    def check(owner: Request, attribute: Attribute[int], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequestError(
                f"{attribute.name} of request {owner.name!r} is {value!r}; "
                f"expected a whole number from {low:,} to {high:,}"
            )

    return check


def _checked_seconds(owner: Request, attribute: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_AUDIO_SECONDS:
        raise InvalidRequestError(
            f"audio_seconds of request {owner.name!r} is {value!r}; expected seconds from 0 to {MAX_AUDIO_SECONDS:g}"
        )


@frozen(kw_only=True)
class Request:
    """One document's worth of work, `batch` times at once.

    Raises
    ------
    InvalidRequestError
        A blank name, or a number out of its range.

    Examples
    --------
    >>> chat = Request(name="chat", prompt_tokens=512, new_tokens=128)
    >>> chat.batch, chat.images, chat.audio_seconds
    (1, (), 0.0)
    """

    name: str = field(validator=_checked_name)
    batch: int = field(default=1, validator=_checked_count(1, MAX_BATCH))  # equal documents processed together
    prompt_tokens: int = field(default=0, validator=_checked_count(0, MAX_TOKENS))  # of text, per document
    new_tokens: int = field(default=1, validator=_checked_count(1, MAX_TOKENS))  # generated per document
    images: tuple[PageSize, ...] = field(default=(), converter=tuple[PageSize, ...])  # of one document
    # What a model without images reads in place of each image: the text of that page.
    page_text_tokens: int = field(default=0, validator=_checked_count(0, MAX_TOKENS))
    audio_seconds: float = field(default=0.0, validator=_checked_seconds)  # of one document


def requests_of(profile: Profile) -> tuple[Request, ...]:
    """Return what a profile asks of any model: one request per page.

    What a page's answer says is the page's text: a model without images reads as many tokens as are generated, and a
    model of speech hears them read aloud, `SPOKEN_TOKENS` a second.

    Examples
    --------
    >>> from dsocr_graph.workloads import load_profile
    >>> letter = requests_of(load_profile("dsocr-standard-v1"))[0]
    >>> letter.images[0].width, letter.prompt_tokens, letter.page_text_tokens, letter.new_tokens, letter.audio_seconds
    (1275, 10, 1100, 1100, 330.0)
    """
    return tuple(
        Request(
            name=entry.page.name,
            batch=profile.batch,
            prompt_tokens=profile.prompt_of(entry),
            new_tokens=entry.new_tokens,
            images=(entry.page,),
            page_text_tokens=entry.new_tokens,
            audio_seconds=entry.new_tokens / SPOKEN_TOKENS,
        )
        for entry in profile.pages
    )


def generation_runs(batch: int, context: int, new_tokens: int, **prefill: int) -> tuple[StageRun, ...]:
    """Return the runs that generate tokens: one prefill, and a decode step for each token after the first.

    Parameters
    ----------
    batch
        Documents processed together: B.
    context
        Tokens of the prompt, those of images included: S of the prefill, T of the first decode step.
    new_tokens
        Tokens generated per document. The prefill yields the first.
    **prefill
        Further dims of the prefill, such as N image tokens.

    Examples
    --------
    >>> for run in generation_runs(2, 100, 5):
    ...     print(run.stage, run.count, run.bindings, run.sweep)
    prefill 1 {'B': 2, 'S': 100} None
    decode 4 {'B': 2, 'T': 100} T
    """
    first = StageRun(stage="prefill", count=1, bindings={"B": batch, "S": context, **prefill})
    if new_tokens == 1:
        return (first,)
    steps = StageRun(stage="decode", count=new_tokens - 1, bindings={"B": batch, "T": context}, sweep="T")
    return first, steps
