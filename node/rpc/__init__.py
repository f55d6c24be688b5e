"""Requests and replies between processes. The only package that imports zmq.

``Transport`` holds the sockets of a process; ``Connection`` is a client's end, ``Server`` the other. ``memory`` carries
the same protocol inside one process, for tests and simulation. ``NOTES.md`` says why it is built like this.
"""

from node.rpc.client import Connection, Reply
from node.rpc.context import Transport
from node.rpc.link import AnyTransport
from node.rpc.security import CurveKeys, Security
from node.rpc.server import Call, Server

__all__ = ["AnyTransport", "Call", "Connection", "CurveKeys", "Reply", "Security", "Server", "Transport"]
