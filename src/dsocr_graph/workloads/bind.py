"""A profile bound to the model's stages: which runs how often at which dims, as a modelmeter Workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelmeter.workload import StageRun, Workload, WorkloadItem

if TYPE_CHECKING:
    from dsocr_graph.workloads.profile import Profile, ProfilePage


def bind_profile(profile: Profile) -> Workload:
    """Return what a model runs for a profile, one item per page.

    The batch is so many equal pages at once. Vision takes them one document at a time, as the published code
    does; prefill and decode take them together. Prefill yields the first token, so decode runs new tokens - 1
    times, the first time with the whole context cached.

    Parameters
    ----------
    profile
        Pages, mode, batch, prompt and new tokens.

    Returns
    -------
    modelmeter.workload.Workload
        Items in the order of the pages, with the stages vision_local (cropped pages only), vision_global,
        prefill and decode (two new tokens or more).

    Examples
    --------
    >>> from dsocr_graph.workloads import load_profile
    >>> letter = bind_profile(load_profile("dsocr-standard-v1")).items[0]
    >>> for run in letter.runs:
    ...     print(run.stage, run.count, run.bindings)
    vision_local 1 {'V': 6, 'H': 3, 'W': 2}
    vision_global 1 {}
    prefill 1 {'B': 1, 'S': 913, 'N': 903}
    decode 1099 {'B': 1, 'T': 913}
    """
    return Workload(
        name=profile.name,
        items=tuple(_item(profile, entry) for entry in profile.pages),
        facts={
            "mode": profile.mode.name,
            "base_size": profile.mode.base_size,
            "dtype": profile.dtype,
            "batch": profile.batch,
            "prompt": profile.prompt,
            "prompt_tokens": profile.prompt_tokens,
            "decoding": "greedy",
            "pages": len(profile.pages),
            **profile.lengths,
        },
    )


def _item(profile: Profile, entry: ProfilePage) -> WorkloadItem:
    page = entry.page
    tiling = profile.tiling(entry)
    batch = profile.batch
    context = tiling.image_tokens + profile.prompt_of(entry)
    runs: list[StageRun] = []
    if tiling.views:
        grid = {"V": tiling.views, "H": tiling.rows, "W": tiling.columns}
        runs.append(StageRun(stage="vision_local", count=batch, bindings=grid))
    runs.append(StageRun(stage="vision_global", count=batch, bindings={}))
    runs.append(StageRun(stage="prefill", count=1, bindings={"B": batch, "S": context, "N": tiling.image_tokens}))
    if entry.new_tokens > 1:
        start = {"B": batch, "T": context}
        runs.append(StageRun(stage="decode", count=entry.new_tokens - 1, bindings=start, sweep="T"))
    return WorkloadItem(
        name=page.name,
        documents=batch,
        runs=tuple(runs),
        facts={
            "width": page.width,
            "height": page.height,
            "crop_columns": tiling.columns,
            "crop_rows": tiling.rows,
            "views": tiling.views,
            "image_tokens": tiling.image_tokens,
            "context_tokens": context,
            "new_tokens": entry.new_tokens,
            "batch": batch,
        },
    )
