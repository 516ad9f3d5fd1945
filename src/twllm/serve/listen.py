"""A listening socket, taken before anything costly is done."""

import errno
import socket

from twllm.errors import UserError


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that the port is ours before the model is loaded.

    Raises:
        UserError: the port is in use, not allowed, or the host is not one of this machine's.
    """
    where = f"{host}:{port}"
    if not 0 <= port <= 65535:
        raise UserError(f"沒有連接埠 {port} (no such port)", where, "用 1024 到 65535 之間的 --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"不能用這個位址 (bad address): {error}", where, "檢查 --host 與 --port") from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1)
    except OSError as error:
        server.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"連接埠 {port} 已經有人在用 (port in use)", where, f"換一個連接埠，例如 --port {port + 1}"
            ) from error
        raise UserError(
            f"不能在這個位址等連線 (cannot listen): {error}", where, "換一個 --host 或 --port（1024 以下要管理員權限）"
        ) from error
    return server
