"""Pages to tokens: files or sizes to crop grid, views, image tokens and the dims a model is evaluated at."""

from __future__ import annotations

from dsocr_graph.workloads.bind import bind_profile
from dsocr_graph.workloads.choose import choose_profile
from dsocr_graph.workloads.errors import WorkloadError
from dsocr_graph.workloads.limits import MAX_CONTEXT
from dsocr_graph.workloads.modes import MODES, Mode, mode_named
from dsocr_graph.workloads.pages import PageSize, PageSource, read_image, read_pdf
from dsocr_graph.workloads.profile import (
    Profile,
    ProfilePage,
    override,
    profile_from_images,
    profile_from_pages,
    profile_from_pdf,
)
from dsocr_graph.workloads.profile_files import STANDARD, available_profiles, load_profile
from dsocr_graph.workloads.tiling import Tiling, closest_grid, tile, tile_crops

__all__ = [
    "MAX_CONTEXT",
    "MODES",
    "STANDARD",
    "Mode",
    "PageSize",
    "PageSource",
    "Profile",
    "ProfilePage",
    "Tiling",
    "WorkloadError",
    "available_profiles",
    "bind_profile",
    "choose_profile",
    "closest_grid",
    "load_profile",
    "mode_named",
    "override",
    "profile_from_images",
    "profile_from_pages",
    "profile_from_pdf",
    "read_image",
    "read_pdf",
    "tile",
    "tile_crops",
]
