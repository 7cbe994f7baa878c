"""Formulas: what a model costs as closed forms in its dims, to read, to check and to carry elsewhere."""

from modelmeter.formulas.formula import STEPS, Formula
from modelmeter.formulas.of_model import (
    QUANTITIES,
    IdleModuleError,
    ModuleFormulas,
    PeakFormula,
    UnknownModuleError,
    active_parameters,
    kv_cache_bytes_per_token,
    module_formulas,
    peak_formulas,
    stage_formulas,
)

__all__ = [
    "QUANTITIES",
    "STEPS",
    "Formula",
    "IdleModuleError",
    "ModuleFormulas",
    "PeakFormula",
    "UnknownModuleError",
    "active_parameters",
    "kv_cache_bytes_per_token",
    "module_formulas",
    "peak_formulas",
    "stage_formulas",
]
