"""Formulas: what a model costs as closed forms in its dims, to read, to check and to carry elsewhere."""

from modelmeter.formulas.formula import STEPS, Formula
from modelmeter.formulas.of_model import (
    QUANTITIES,
    ModuleFormulas,
    UnknownModuleError,
    active_parameters,
    module_formulas,
    stage_formulas,
)

__all__ = [
    "QUANTITIES",
    "STEPS",
    "Formula",
    "ModuleFormulas",
    "UnknownModuleError",
    "active_parameters",
    "module_formulas",
    "stage_formulas",
]
