"""A quantity is read as its writer meant it, or refused in one sentence with a right example."""

import re

import pytest

from thinwire import units
from thinwire.errors import ConfigError
from thinwire.keys import Key
from thinwire.link import MESSAGE, PACKET, SEGMENT, Link, Port


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("100mbit", 1e8), ("100Mbit", 1e8), ("100 Mbit/s", 1e8), ("2gbit", 2e9), ("40 MB/s", 3.2e8),
        ("1.5Gb/s", 1.5e9), ("56kbit", 56e3), ("1e9", 1e9), ("12.5MB/s", 1e8), ("9600", 9600),
        ("1 MBit/s", 1e6), ("8bit", 8), ("1kB/s", 8e3),
    ],
)  # fmt: skip
def test_a_rate_is_bits_a_second_and_a_capital_b_is_eight(text, bits):
    assert units.rate(text) == pytest.approx(bits)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "100mbps", "100 MBps", "-5mbit", "mbit", "1.2.3mbit", "nan", "inf", "1e999"],
)
def test_no_rate_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="100mbit"):
        units.rate(text)


@pytest.mark.parametrize("text", ["0", "0mbit", "0.0 GB/s"])
def test_a_bandwidth_of_zero_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="carries nothing; write one such as 100mbit"):
        units.rate(text)
    with pytest.raises(ConfigError, match="carries nothing"):
        Link(bandwidth=0.0)


@pytest.mark.parametrize(
    ("read", "text", "example"),
    [
        (units.seconds, "20 parsecs", "20ms"), (units.seconds, "-1s", "20ms"),
        (units.count, "1.5", "1.1e9"), (units.count, "0", "1.1e9"), (units.count, "many", "1.1e9"),
        (units.share, "120%", "0.01"), (units.share, "half", "0.01"),
        (units.size, "1.5", "256MB"), (units.size, "-1", "256MB"), (units.size, "1iB", "256MB"),
    ],
)  # fmt: skip
def test_what_does_not_parse_is_refused_with_an_example(read, text, example):
    with pytest.raises(ConfigError, match=re.escape(example)):
        read(text)


@pytest.mark.parametrize(
    "text",
    ["", ",", "100mbit,20ms,5", "100mbit,speed=2", "100mbit,100mbit=1", "20ms", "1,2,loss=3"],
)
def test_no_link_is_refused_in_one_sentence(text):
    with pytest.raises(ConfigError) as refused:
        Link.parse(text)
    assert "write" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_link_says_all_its_parts_and_reads_them():
    link = Link.parse("100mbit,20ms,down=1gbit,jitter=5ms,loss=1%,drop=2%,patience=3s")
    assert link == Link(1e8, 0.02, 1e9, 0.005, 0.01, 0.02, 3.0)
    assert Link.from_json(link.to_json()) == link
    assert link.say() == "100 Mbit/s, 20 ms, down 1 Gbit/s, jitter 5 ms, loss 1%, drop 2%"
    assert Link.parse("unlimited,3ms") == Link(None, 0.003)
    with pytest.raises(ConfigError, match="twice"):
        Link.parse("100mbit,bandwidth=2gbit")


def test_a_frame_is_on_the_wire_with_the_headers_of_each_packet():
    link = Link(8e6)
    for n in (0, 26, SEGMENT - MESSAGE, SEGMENT - MESSAGE + 1, 10**6):
        packets = -(-(n + MESSAGE) // SEGMENT)
        assert link.wire_bytes(n) == n + MESSAGE + packets * PACKET
        assert link.seconds(n) == pytest.approx(link.wire_bytes(n) / 1e6)
    assert Link(None, 0.5).seconds(10**9) == 0
    assert Link(8e6, down=8e7).seconds(1000, downwards=True) == pytest.approx(
        link.seconds(1000) / 10
    )


def test_a_port_serves_one_after_the_other_and_waits_for_none():
    port = Port()
    assert [port.serve(0, 2), port.serve(1, 2), port.serve(10, 1)] == [2, 4, 11]


def test_luck_is_the_keys_and_has_the_rates_asked_for():
    link = Link(1e8, 0.01, jitter=0.004, loss=0.01, drop=0.1)
    draws = [link.luck(100_000, Key(3, n, 1)) for n in range(4000)]
    assert draws == [link.luck(100_000, Key(3, n, 1)) for n in range(4000)]
    assert sum(d.lost for d in draws) / 4000 == pytest.approx(0.1, abs=0.02)
    assert sum(d.again for d in draws) / 4000 == pytest.approx(0.01 / 0.99, rel=0.1)
    trips = [round((d.late - d.late % 0.02) / 0.02) for d in draws]
    assert sum(t > 0 for t in trips) / 4000 == pytest.approx(1 - 0.99**70, abs=0.03)
    assert 0.0015 < sum(d.late % 0.02 for d in draws) / 4000 < 0.0025
    assert Link(1e8).luck(100, Key(0)) == type(draws[0])()
