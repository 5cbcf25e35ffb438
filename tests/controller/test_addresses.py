"""Which addresses a worker may register."""

from __future__ import annotations

import pytest

from controller.addresses import check_address, is_loopback_url
from protocol.errors import TriremeError


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:21002",
        "http://127.0.0.1:21002",
        "https://worker-0.example.org",
        "http://10.1.2.3:80",
        "http://[::1]:21002",
        "http://worker_1:21002",
    ],
)
def test_a_plain_base_url_is_taken(address: str) -> None:
    check_address(address, "address")


@pytest.mark.parametrize(
    "address",
    [
        "ftp://h:1",
        "http://user@h:1",
        "http://h:1/path",
        "http://h:1?x=1",
        "http://h\n:1",
        "http://h:1\n",
        "http://h\\@other:1",
        "http://:80",
        "http://h:99999",
        "http://h:0",
        "http://[::1",
        "http://169.254.169.254",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.254.169.254",
        "http://169.254.43518",
        "http://[fe80::1]:1",
        "http://[fe80::1%25eth0]:1",
        "http://[::ffff:169.254.169.254]:80",
        "http://[::169.254.169.254]:80",
        "http://[64:ff9b::a9fe:a9fe]:80",
        "http://[2002:a9fe:a9fe::1]:80",
        "http://169.254.169.254.:80",
        "http://\uff11\uff16\uff19.254.169.254",
        "http://169\u3002254.169.254",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://168.63.129.16",
        "http://metadata.google.internal",
        "http://METADATA.google.internal.:80",
        "http://h:1;x",
        "http://h,other:1",
        "http://0.0.0.0:21002",
        "http://[::]:21002",
        "http://224.0.0.1",
        "http://[fd20:ce::254]",
        "http://[64:ff9b:1::169.254.169.254]:80",
        "http://[64:ff9b:1:2::a9fe:a9fe]",
        "http://[::ffff:0:169.254.169.254]:80",
        "http://255.255.255.255:80",
        "http://4294967295",
    ],
)
def test_anything_else_is_refused_by_name(address: str) -> None:
    with pytest.raises(TriremeError) as caught:
        check_address(address, "address")
    assert caught.value.code == "invalid_value"
    assert caught.value.param == "address"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://localhost:1", True),
        ("http://127.8.8.8:1", True),
        ("http://[::1]:1", True),
        ("http://localhost.example.org:1", False),
        ("http://10.0.0.1:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(address: str, local: bool) -> None:
    assert is_loopback_url(address) is local
