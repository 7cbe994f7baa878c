"""What-ifs: a model with other element types, logits or KV growth, as another model; each says what it changes."""

from modelmeter.whatif.apply import WhatIf, apply
from modelmeter.whatif.change import Change, Shift
from modelmeter.whatif.errors import UnknownChoiceError, UnsupportedWhatIfError, WhatIfError
from modelmeter.whatif.evaluated import evaluate_what_if
from modelmeter.whatif.options import AS_CAPTURED, Options

__all__ = [
    "AS_CAPTURED",
    "Change",
    "Options",
    "Shift",
    "UnknownChoiceError",
    "UnsupportedWhatIfError",
    "WhatIf",
    "WhatIfError",
    "apply",
    "evaluate_what_if",
]
