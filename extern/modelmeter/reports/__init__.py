"""Reports: a model evaluated at a workload, as records and as JSON."""

from modelmeter.reports.report import (
    REPORT_SCHEMA_VERSION,
    Breakdown,
    Coverage,
    ItemReport,
    LiveBytes,
    ModuleAmount,
    MoEReport,
    Report,
    ReportFileError,
    RunMemory,
    StageMemory,
    WhatIfEffect,
    read_report,
    report_from_json,
)

__all__ = [
    "REPORT_SCHEMA_VERSION",
    "Breakdown",
    "Coverage",
    "ItemReport",
    "LiveBytes",
    "MoEReport",
    "ModuleAmount",
    "Report",
    "ReportFileError",
    "RunMemory",
    "StageMemory",
    "WhatIfEffect",
    "read_report",
    "report_from_json",
]
