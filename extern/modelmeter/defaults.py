"""Defaults and choices that a command line also names in its help, before anything that takes long to import."""

USABLE = 0.9
"""Fraction of device memory that a run may take; the rest is left to the driver's context, workspaces of libraries and
what an allocator cannot hand out. Also what vLLM has long taken unless told otherwise (`gpu_memory_utilization`)."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Batches that a search over devices tries."""

GROUP_SIZE = 128
"""Elements of a row of int8 and int4 weights that share a scale."""

MOE_FORMS = GROUPED_EXPERTS, EXPERT_LOOP = "grouped", "loop"
"""How experts run: their products in one call, as captured, or expert after expert, as the published code does."""
