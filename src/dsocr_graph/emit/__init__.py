"""Emit: artefacts from a compiled model and its report, one file per format."""
