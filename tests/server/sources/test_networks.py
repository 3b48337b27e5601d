"""Addresses that imports may connect to, generated from the special-purpose blocks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from bmt_server.settings import SettingsError
from bmt_server.sources.networks import Networks, is_public
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.provisional import domains

SPECIAL = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32"),
    *("2001:10::/28", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    *("fec0::/10", "ff00::/8"),
)
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")


def inside(network):
    block = ip_network(network)
    return st.integers(0, block.num_addresses - 1).map(lambda n: block[n])


private = st.one_of(*map(inside, SPECIAL))
private_v4 = st.one_of(*(inside(block) for block in SPECIAL if "." in block))
public_v4 = st.integers(0, 2**32 - 1).map(IPv4Address).filter(is_public)


@given(private)
def test_no_address_of_a_special_block_is_allowed(address):
    assert not Networks().allow(str(address))


@given(private_v4)
def test_an_address_is_refused_in_its_other_spellings(address):
    mapped = IPv6Address(0xFFFF << 32 | int(address))
    nat64 = IPv6Network("64:ff9b::/96")[int(address)]
    sixtofour = IPv6Address(0x2002 << 112 | int(address) << 80)
    assert Networks().refused([str(mapped), str(nat64), str(sixtofour)]) == [
        str(mapped),
        str(nat64),
        str(sixtofour),
    ]
    # Linux maps them to the IPv4 address too.
    assert not Networks().allow(f"::{address}")


@given(public_v4)
def test_public_addresses_are_allowed_also_by_nat64(address):
    assert address.is_global
    assert Networks().allow(str(address))
    assert Networks().allow(str(IPv6Network("64:ff9b::/96")[int(address)]))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "2a00:1450::1"])
def test_well_known_public_hosts(address):
    assert Networks().allow(address)


@given(private)
def test_a_named_network_opens_itself_and_no_other(address):
    networks = Networks("10.1.0.0/16, fd12:3456::/32")
    named = any(
        address in ip_network(n) for n in ("10.1.0.0/16", "fd12:3456::/32") if address.version
    )
    assert networks.allow(str(address)) == named
    assert networks.allow("10.1.2.3")
    assert networks.allow("::ffff:10.1.2.3")
    assert not networks.allow("10.2.0.1")


@pytest.mark.parametrize(
    "address", [*METADATA, "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254%eth0"]
)
def test_metadata_is_refused_whatever_is_named(address):
    assert not Networks("0.0.0.0/0,::/0").allow(address)
    assert Networks("0.0.0.0/0,::/0").allow("169.254.1.1")


@given(st.one_of(domains(), st.text(max_size=20)))
def test_what_is_no_address_is_refused(text):
    try:
        ip_address(text)
    except ValueError:
        assert not Networks("0.0.0.0/0,::/0").allow(text)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "private", "10.1.2.3/16", "::1::"])
def test_a_wrong_network_ends_the_start(text):
    with pytest.raises(SettingsError, match="--import-networks"):
        Networks(text)
