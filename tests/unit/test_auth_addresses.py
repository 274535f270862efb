"""Where an API key may be used from: how rules are written, and which addresses they admit."""

import pytest

from tidegate.auth.addresses import AllowedAddresses, admits_all, canonical_range, plain_address


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:200/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/96", "::/96"),
    ],
)
def test_a_rule_has_one_form(written: str, canonical: str) -> None:
    assert canonical_range(written) == canonical
    assert canonical_range(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "write it as"),
        ("localhost", "write it as"),
        ("192.0.2", "write it as"),
        ("192.0.2.256", "write it as"),
        ("192.0.2.01", "write it as"),
        ("192.0.2.0/33", "write it as"),
        ("2001:db8::/129", "write it as"),
        ("192.0.2.7:443", "write it as"),
        ("[2001:db8::1]", "write it as"),
        ("*", "write it as"),
        (" 192.0.2.7", "write it as"),
        ("192.0.2.7/24", "192.0.2.0/24 for all of it"),
        ("2001:db8::1/32", "2001:db8::/32 for all of it"),
        ("fe80::1%eth0", "leave out what follows the %"),
    ],
)
def test_what_is_no_rule_says_how_to_write_one(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        canonical_range(written)


@pytest.mark.parametrize(
    ("rule", "address", "is_admitted"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.0", False),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("192.0.2.0/24", "::ffff:c000:207", True),
        ("192.0.2.0/24", "::FFFF:192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        # The mapped form is IPv4, whatever IPv6 network holds its digits.
        ("::/0", "::ffff:192.0.2.7", False),
        ("::/0", "192.0.2.7", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("0.0.0.0/0", None, False),
        ("0.0.0.0/0", "", False),
        ("0.0.0.0/0", "testclient", False),
        ("0.0.0.0/0", "192.0.2.7, 192.0.2.8", False),
    ],
)
def test_a_rule_admits_what_it_holds(rule: str, address: str | None, is_admitted: bool) -> None:
    assert AllowedAddresses([rule]).admits(address) is is_admitted
    assert AllowedAddresses(["198.51.100.1", rule]).admits(address) is is_admitted


def test_a_list_that_cannot_be_read_admits_nobody() -> None:
    for stored in ([], ["everywhere"], ["192.0.2.7/24"]):
        assert not AllowedAddresses(stored).admits("192.0.2.7")
    assert AllowedAddresses(["everywhere", "192.0.2.7"]).admits("192.0.2.7")


@pytest.mark.parametrize(
    ("ranges", "others", "holds"),
    [
        (["192.0.2.0/24"], ["192.0.2.7", "192.0.2.128/25"], True),
        (["192.0.2.0/24"], ["192.0.2.0/24"], True),
        (["192.0.2.0/24"], ["192.0.2.0/23"], False),
        (["192.0.2.0/24"], ["192.0.2.7", "198.51.100.1"], False),
        (["192.0.2.0/24", "2001:db8::/32"], ["2001:db8::1", "192.0.2.7"], True),
        (["0.0.0.0/0"], ["::/0"], False),
        (["::/0"], ["192.0.2.7"], False),
        (["everywhere"], ["192.0.2.7"], False),
    ],
)
def test_a_list_holds_another_where_it_admits_all_of_it(ranges: list[str], others: list[str], holds: bool) -> None:
    assert admits_all(ranges, others) is holds


def test_what_is_no_address_is_none() -> None:
    assert plain_address("unix:") is None
    assert plain_address("<script>") is None
    assert str(plain_address("::ffff:192.0.2.7")) == "192.0.2.7"
