"""Sizes, rates and devices as people write them, in bytes."""

import pytest

from indexcache.errors import SettingError
from indexcache.recipes.numbers import byte_rate, byte_size, devices


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9), ("1TB", 10**12), ("64GiB", 64 << 30), ("1.5 tb", 15 * 10**11),
        ("1,5TB", 15 * 10**11),
        (" 900 MB ", 900 * 10**6), ("0.5KiB", 512), ("1PB", 10**15),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert byte_size("ram", text) == size


@pytest.mark.parametrize(
    "text", ["", "80", "GB", "80G", "0GB", "-1GB", "1e3GB", "80GB/s", "8x80GB", "9999999PB", "nan"]
)
def test_what_is_no_size_is_told_the_form(text):
    with pytest.raises(SettingError) as caught:
        byte_size("ram", text)
    assert caught.value.line() == f"--ram is {text!r} (give a size with its unit, e.g. 80GB, 1TB or 64GiB)"


def test_rates():
    assert byte_rate("disk-rate", "6GB/s") == 6 * 10**9
    assert byte_rate("disk-rate", "900 MiB / s") == 900 << 20
    for text in ("6GB", "6/s", "6Gb/h", "200Gb/s", "GB/s", ""):
        with pytest.raises(SettingError, match=r"--disk-rate is .*"):
            byte_rate("disk-rate", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8x141GB", (8, 141 * 10**9)),
        ("80GB", (1, 80 * 10**9)),
        ("2 X 80GiB", (2, 80 << 30)),
        ("4*24GB", (4, 24 * 10**9)),
    ],
)
def test_devices(text, expected):
    assert devices("gpus", text) == expected


@pytest.mark.parametrize("text", ["8", "8x", "x80GB", "0x80GB", "8x80", "80GBx8", "-1x80GB", "1.5x80GB"])
def test_what_names_no_devices_is_told_the_form(text):
    with pytest.raises(SettingError) as caught:
        devices("gpus", text)
    assert "e.g. 8x80GB or 1x141GB" in caught.value.line()
