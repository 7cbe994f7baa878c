"""Devices: what the table holds, how a device is found, and which entries are refused."""

import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest

from modelmeter.devices import DeviceSpec, available_devices, load_device, read_catalog
from modelmeter.errors import InvalidDeviceError, ModelMeterError, UnknownDeviceError

TABLE = """
[sources]
sheet = "the vendor's sheet"

[architectures]
chip = { fp32_flops_per_clock = 256, bf16_flops_per_clock = 4096, source = "sheet" }

[devices.card]
name = "Maker Card 80GB"
vendor = "Maker"
architecture = "chip"
date = "2026-11"
bf16_tflops = { value = 960, source = "sheet" }
fp32_tflops = { value = 60, source = "sheet" }
memory_gib = { value = 80, source = "sheet" }
bandwidth_gb_per_s = { value = 3000, source = "sheet" }
l2_mib = { value = 50, source = "sheet" }
sm_count = { value = 132, source = "sheet" }
tdp_watts = { value = 700, source = "sheet" }
links = [{ name = "Link", value = 900, source = "sheet" }]
"""


def test_every_listed_device_is_in_the_table() -> None:
    """The table holds the fifteen GPUs it is meant to hold."""
    assert available_devices() == (
        "a10",
        "a100-40gb-sxm",
        "a100-80gb-pcie",
        "a100-80gb-sxm",
        "b200",
        "h100-pcie",
        "h100-sxm",
        "h20",
        "h200",
        "l4",
        "l40s",
        "mi300x",
        "rtx-3090",
        "rtx-4090",
        "rtx-5090",
    )


def test_numbers_are_in_base_units() -> None:
    """H200: 989 TFLOP/s, 4,800 GB/s, 141 GiB = 141 * 1,073,741,824 bytes, 60 MiB = 62,914,560 bytes of L2."""
    h200 = load_device("h200")
    assert h200.matrix_flops["bf16"] == 989e12
    assert h200.memory_bandwidth == 4.8e12
    assert h200.memory_bytes == 151_397_597_184
    assert h200.l2_bytes == 62_914_560
    assert h200.links[0].bandwidth == 900e9


@pytest.mark.parametrize("key", available_devices())
def test_every_number_names_its_source(key: str) -> None:
    """Each figure of each device is sourced in words and dated."""
    device = load_device(key)
    assert set(device.sources) == set(device.numbers())
    assert all(len(source) > 10 for source in device.sources.values())
    assert device.date == "2026-11"


def test_known_errors_of_other_tables_are_not_in_this_one() -> None:
    """H100 and L4 bf16 are dense, and the A100 40GB has its own bandwidth, not the 80 GB card's."""
    assert load_device("h100-sxm").peak_flops("bf16") == pytest.approx(989.4e12)
    assert load_device("l4").peak_flops("bf16") == 121e12
    assert load_device("a100-40gb-sxm").memory_bandwidth == 1.555e12


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("h100_sxm", "h100-sxm"),
    ],
)
def test_spellings_of_drivers_and_people_find_the_device(spelling: str, key: str) -> None:
    """Case, dashes, spaces and the vendor's name do not matter."""
    assert load_device(spelling).key == key


def test_an_unknown_device_lists_the_known_ones() -> None:
    """The error is a KeyError too, and its message is readable: alternatives, and the closest one."""
    with pytest.raises(UnknownDeviceError, match=r"^unknown device 'h2000'; did you mean h200") as caught:
        load_device("h2000")
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ModelMeterError)
    assert all(key in str(caught.value) for key in available_devices())


def test_an_ambiguous_name_is_not_guessed() -> None:
    """'a100' is three cards with different bandwidths, so the error asks for one of them."""
    with pytest.raises(UnknownDeviceError, match="could be a100-40gb-sxm or a100-80gb-sxm or a100-80gb-pcie"):
        load_device("a100")


@pytest.mark.parametrize("name", ["", "  ", "ascend-910b", "cpu"])
def test_devices_without_agreed_figures_are_unknown(name: str) -> None:
    """Neither an empty name nor a device that was left out gives a default."""
    with pytest.raises(UnknownDeviceError):
        load_device(name)


def test_errors_survive_pickling() -> None:
    """A worker process can send the error back whole."""
    with pytest.raises(UnknownDeviceError) as caught:
        load_device("h2000")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.known == available_devices()


def test_a_type_that_the_device_lacks_is_an_error() -> None:
    """The A100 has no fp8; the message lists what it has."""
    with pytest.raises(InvalidDeviceError, match="no peak for 'fp8'; it has bf16, fp16, tf32, fp32"):
        load_device("a100-40gb-sxm").peak_flops("fp8")


def test_a_table_of_the_same_form_is_read() -> None:
    """960 / 60 * 256 = 4,096 FLOPs per multiprocessor and clock: exactly what the architecture does."""
    device = read_catalog(TABLE)["card"]
    assert device.peak_flops("bf16") == 960e12
    assert device.sources["links.Link"] == "the vendor's sheet"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bf16_tflops = { value = 960", "bf16_tflops = { value = 1920", "needs 8192 .* does 4096 densely"),
        ('sm_count = { value = 132, source = "sheet" }', "sm_count = { value = 132 }", "sm_count must be"),
        ('value = 132, source = "sheet"', 'value = 132, source = "rumour"', "'rumour' is not defined"),
        ("value = 80", "value = 0", "memory_bytes is 0; it must be positive"),
        ("value = 700", "value = -700", "tdp is -700.0; it must be positive"),
        ("value = 3000", "value = nan", "memory_bandwidth is nan; it must be positive"),
        ("value = 132", "value = true", "sm_count is True, not a number"),
        ("value = 60,", 'value = "60",', "vector_fp32_flops is '60', not a number"),
        ('date = "2026-11"', 'date = "last year"', "YYYY-MM"),
        ('architecture = "chip"', 'architecture = "chop"', r"'chop' is not defined; known are \['chip'\]"),
        ("l2_mib", "l2_mb", r"unknown keys \['l2_mb'\], missing keys \['l2_mib'\]"),
        ("[devices.card]", "[devices.card", "no TOML"),
        ("tdp_watts", 'fp8_tflops = { value = 3840, source = "sheet" }\ntdp_watts', "fp8 peak is 4 times"),
        ("tdp_watts", 'tf32_tflops = { value = 960, source = "sheet" }\ntdp_watts', "tf32 peak is 1 times"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(old: str, new: str, message: str) -> None:
    """Sparse peaks, missing sources, impossible numbers and misspelt keys give one message with the place."""
    assert old in TABLE
    with pytest.raises(InvalidDeviceError, match=message):
        read_catalog(TABLE.replace(old, new))


def test_two_devices_do_not_share_a_name() -> None:
    """An alias that belongs to another device would make the lookup depend on order."""
    second = TABLE[TABLE.index("[devices.card]") :].replace("devices.card", "devices.other")
    with pytest.raises(InvalidDeviceError, match="'card' and 'other' share the name 'Maker Card 80GB'"):
        read_catalog(TABLE + second)


def test_a_record_made_in_code_is_checked_too() -> None:
    """A what-if on a device goes through the same checks: a number without its source is refused."""
    device = load_device("h200")
    faster = attrs.evolve(device, memory_bandwidth=6e12)
    assert faster.memory_bandwidth == 6e12
    sources: dict[str, Any] = {**device.sources, "tdp": " "}
    with pytest.raises(InvalidDeviceError, match="no source for tdp"):
        attrs.evolve(device, sources=sources)


def test_a_record_cannot_be_changed() -> None:
    """The peaks of a loaded device are read-only, so that one caller cannot change another's."""
    device: DeviceSpec = load_device("h200")
    with pytest.raises(TypeError):
        device.matrix_flops["bf16"] = 1.0  # pyright: ignore[reportIndexIssue] - the mistake under test


def test_the_readme_says_why_devices_are_left_out(repo_root: Path) -> None:
    """Whoever looks for the Ascend 910B or a CPU finds the reason."""
    text = (repo_root / "extern/modelmeter/devices/README.md").read_text(encoding="utf-8")
    assert "Ascend 910B" in text
    assert "CPUs" in text
