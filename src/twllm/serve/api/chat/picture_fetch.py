"""A picture from an http(s) address, for servers whose operator allows it: never a way into the operator's own network.

The host has to be named in the settings. "*" stands for every host with public addresses only: its name is looked up here, all of its
addresses must be global, and the connection goes to the address that was checked, so that a name cannot change in between. A host named
outright is the operator's word and may be private. Redirects are not followed, and no proxy is used, both would be other hosts.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from twllm.tokens.pictures import BadPicture

TIMEOUT_S = 10.0  # for the whole picture; chosen
PORTS = {"http": 80, "https": 443}


async def fetch_picture(url: str, hosts: Sequence[str], max_bytes: int) -> bytes:
    """The bytes at `url`.

    Raises:
        BadPicture: not allowed, not reachable, too large, or an answer other than 200.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or PORTS[parts.scheme]
    except ValueError as error:
        raise BadPicture(f"網址寫錯了 (bad URL): {error}", url[:200], "改用 data: 網址") from error
    if not hosts:
        raise BadPicture("這台伺服器不下載圖片 (URLs are not fetched)", url[:200], "改用 data: 網址 (base64)")
    if parts.username or parts.password:
        raise BadPicture("網址不能帶帳號密碼 (credentials in a URL)", host, "拿掉它")
    named = host in {name.lower() for name in hosts}
    if not named and "*" not in hosts:
        raise BadPicture(f"不能從這個主機下載 (host not allowed): {host}", url[:200], "改用 data: 網址 (base64)")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            address = host if named else await _public_address(host, port)
            return await _get(url, host, port, address, max_bytes)
    except (httpx.HTTPError, OSError, TimeoutError, UnicodeError) as error:
        raise BadPicture(
            f"下載不到圖片 (cannot fetch): {type(error).__name__}", url[:200], "改用 data: 網址"
        ) from error


async def _public_address(host: str, port: int) -> str:
    """One of the host's addresses, all of which are public."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not addresses or not all(_is_public(address) for address in addresses):
        raise BadPicture(f"不能從這個主機下載 (not a public address): {host}", host, "改用 data: 網址 (base64)")
    return addresses[0]


def _is_public(address: str) -> bool:
    """Whether the address is on the internet, also when it is IPv4 inside IPv6."""
    found = ipaddress.ip_address(address)
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return (inner or found).is_global and not (inner or found).is_multicast


async def _get(url: str, host: str, port: int, address: str, max_bytes: int) -> bytes:
    parts = urlsplit(url)
    literal = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
    named = host if port == PORTS[parts.scheme] else f"{host}:{port}"
    headers = {"Host": named, "Accept": "image/*", "User-Agent": "twllm"}
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S) as client,
        client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as response,
    ):
        if response.status_code != 200:
            raise BadPicture(f"下載不到圖片 (HTTP {response.status_code})", url[:200], "檢查網址；不會跟著轉址走")
        data = bytearray()
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > max_bytes:
                raise BadPicture(f"圖片檔太大 (more than {max_bytes:,} bytes)", url[:200], "先縮小")
        return bytes(data)
