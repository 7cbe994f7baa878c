"""The names of all operators that the installed torch can dispatch under `aten`."""

from __future__ import annotations

import torch


def aten_names() -> frozenset[str]:
    """Return every name in ATen that has a schema, overloads together.

    Source: the dispatcher's own table, `torch._C._dispatch_get_all_op_names`; names that only TorchScript knows are not
    in it and can be in no captured graph.

    Examples
    --------
    >>> "aten::linear" in aten_names(), "aten::append" in aten_names()
    (True, False)
    """
    known = torch._C._dispatch_get_all_op_names()  # pyright: ignore[reportPrivateUsage] - torch has no public list
    return frozenset(name.partition(".")[0] for name in known if name.startswith("aten::"))


def torch_release() -> str:
    """Return the release of torch, without the build.

    Examples
    --------
    >>> torch_release() in torch.__version__
    True
    """
    return torch.__version__.partition("+")[0]
